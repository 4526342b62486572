"""Large graphs as ONNX files with random weights: how long a design takes to be found."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import hwopt
from benchmarks.fpga.networks import NETWORKS
from hwopt.layer_table import Layer, LayerKind

TRIALS = [("resnet50_v15", "alveo-u250", (4, 4)), ("resnet50_v15", "zcu104", (8, 8)), ("mobilenet_v2", "zcu104", (4, 4)), ("efficientnet_lite0", "zcu104", (8, 8)), ("efficientnet_lite0", "alveo-u250", (8, 8))]  # fmt: skip


def to_onnx(layers: list[Layer], path: Path) -> None:
    """Float ONNX of a table of layers."""
    rng = np.random.default_rng(0)
    nodes, stored = [], []
    for layer in layers:
        inputs = [name or "input" for name in layer.inputs]
        if layer.is_weighted:
            shape = (
                (layer.rows, layer.columns)
                if layer.kind is LayerKind.DENSE
                else (layer.rows, layer.in_shape[0] // layer.groups, *layer.kernel)
            )
            stored.append(
                numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{layer.name}.w")
            )
        if layer.kind is LayerKind.DENSE:
            nodes.append(helper.make_node("Flatten", inputs, [f"{layer.name}.flat"]))
            nodes.append(
                helper.make_node(
                    "Gemm", [f"{layer.name}.flat", f"{layer.name}.w"], [layer.name], layer.name, transB=1
                )
            )
        elif layer.is_weighted:
            pads = [*layer.padding, *layer.pad_after]
            nodes.append(
                helper.make_node(
                    "Conv",
                    [*inputs, f"{layer.name}.w"],
                    [layer.name],
                    layer.name,
                    strides=layer.stride,
                    pads=pads,
                    group=layer.groups,
                    kernel_shape=layer.kernel,
                )
            )
        elif layer.kind is LayerKind.POOL:
            nodes.append(
                helper.make_node(
                    "MaxPool",
                    inputs,
                    [layer.name],
                    layer.name,
                    kernel_shape=layer.kernel,
                    strides=layer.stride,
                    pads=[*layer.padding, *layer.pad_after],
                )
            )
        else:
            nodes.append(helper.make_node(layer.op, inputs, [layer.name], layer.name))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, *layers[0].in_shape])],
        [helper.make_tensor_value_info(layers[-1].name, TensorProto.FLOAT, [1, layers[-1].rows])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)


def show() -> None:
    for name, device, bits in TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.onnx"
            to_onnx(NETWORKS[name](), path)
            start = time.monotonic()
            found = hwopt.fpga_estimate(path, target=device, bits=bits)
            seconds = time.monotonic() - start
        said = "fits" if found["fits"] else "; ".join(found["short"])
        print(
            f"{name:20s} {device:11s} {bits[0]}:{bits[1]}  {seconds:5.1f} s  {found['frames_per_second']:9,.0f} frames/s  {said}"
        )
