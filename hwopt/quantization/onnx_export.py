"""Torch graph to ONNX, then the passes that runtimes need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import nn

from hwopt.errors import StageFailedError
from hwopt.models.recurrent import TRANSLATIONS
from hwopt.models.sample import example, free_axes
from hwopt.quantization import onnx_passes as passes
from hwopt.quantization.graph import quiet_exporters

OPSET: Final = 20


def export_onnx(
    model: nn.Module, sample_shape: Sequence[int], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write ``model`` as ONNX with input ``input`` (dynamic batch) and output ``logits``.

    Raises:
        StageFailedError: the exporter or the ONNX checker refuses the model.
    """
    try:
        with quiet_exporters():
            program = torch.onnx.export(
                model,
                (example(sample_shape),),
                dynamo=True,
                dynamic_shapes=free_axes(sample_shape),
                custom_translation_table=TRANSLATIONS,
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
    passes.global_pools(proto.graph)
    passes.strip_traces(proto)
    passes_for_runtimes(proto)
    write(proto, path, metadata)


def passes_for_runtimes(proto: onnx.ModelProto) -> None:
    """What every quantized file needs, wherever it came from."""
    passes.merge_padding(proto.graph)
    passes.fold_weight_transposes(proto.graph)
    passes.integer_products(proto.graph)
    passes.unshare_grids(proto.graph)
    passes.pack_four_bits(proto)
    passes.allow_sixteen_bits(proto)


def write(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Check and write; a model that fails the check leaves no file."""
    for key in metadata:
        for entry in [e for e in proto.metadata_props if e.key == key]:
            proto.metadata_props.remove(entry)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "hwopt"
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageFailedError(
            f"the model that came out is not valid ONNX: {str(error).splitlines()[0]}",
            fix="report it with the model",
        ) from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
