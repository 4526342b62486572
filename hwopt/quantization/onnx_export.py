"""Torch graph to ONNX, then the passes that runtimes need.

Known behaviour of the exporter that is mended here: global average pooling comes out as ReduceMean, which
integer runtimes do not fuse; equal scales are merged into one initializer, which ONNX Runtime's
``session.x64quantprecision`` refuses; every node carries a Python stack trace with paths of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from hwopt.errors import StageFailedError
from hwopt.quantization.graph import quiet_exporters

OPSET: Final = 20


def export_onnx(
    model: nn.Module, sample_shape: Sequence[int], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write ``model`` as ONNX with input ``input`` (dynamic batch) and output ``logits``.

    Raises:
        StageFailedError: the exporter or the ONNX checker refuses the model.
    """
    example = torch.zeros(2, *sample_shape)
    try:
        with quiet_exporters():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["input"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps every cause in types of its own
        raise StageFailedError(
            f"torch.onnx cannot export the model: {str(error).splitlines()[0]}",
            fix="run `hwopt export --debug` for the exporter's whole report",
        ) from error
    if program is None:
        raise StageFailedError("torch.onnx gave no program")
    proto = program.model_proto
    global_pools(proto.graph)
    unshare_grids(proto.graph)
    strip_traces(proto)
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "hwopt"
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def global_pools(graph: onnx.GraphProto) -> None:
    """ReduceMean over the last two of four axes becomes GlobalAveragePool."""
    constants = {i.name: i for i in graph.initializer}
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = sorted(int(a) for a in numpy_helper.to_array(constants[node.input[1]]).ravel())
        keep = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
        if keep and (axes == [-2, -1] or axes == [2, 3]) and ranks.get(node.output[0], 4) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    for initializer in list(graph.initializer):
        if initializer.name not in used and initializer.name not in {o.name for o in graph.output}:
            graph.initializer.remove(initializer)


def unshare_grids(graph: onnx.GraphProto) -> None:
    """Every Q and DQ node gets scale and zero point of its own."""
    constants = {i.name: i for i in graph.initializer}
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        for slot in (1, 2):
            if len(node.input) <= slot or node.input[slot] not in constants:
                continue
            name = node.input[slot]
            if name in taken:
                copy = graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = f"{name}_of_{index}"
                node.input[slot] = copy.name
            taken.add(name)


def strip_traces(proto: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporter: bytes, and paths of this machine."""
    holders: tuple[Any, ...] = (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    )
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""
    del proto.graph.metadata_props[:]
    proto.graph.doc_string = ""
    del proto.functions[:]
