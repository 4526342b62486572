"""Small networks as tables of layers, and fabrics to put them on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwopt.config.hardware import shipped
from hwopt.core.fpga import FpgaFabric
from hwopt.layer_table import Layer, LayerKind
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, deployed, insert
from hwopt.quantization.onnx_export import export_onnx


def fabric(name: str = "zcu104") -> FpgaFabric:
    found = shipped(name).fpga
    assert found is not None
    return found


def conv(cin: int = 8, cout: int = 16, size: int = 8, bits: int = 8, **more: Any) -> Layer:
    fields: dict[str, Any] = {
        "name": "c", "op": "Conv", "kind": LayerKind.CONV, "inputs": (), "in_shape": (cin, size, size),
        "out_shape": (cout, size, size), "kernel": (3, 3), "padding": (1, 1), "pad_after": (1, 1),
        "weight_bits": bits, "activation_bits": bits, "out_bits": bits,
        "macs": cin * cout * 9 * size * size, "weights": cin * cout * 9,
    }  # fmt: skip
    return Layer(**fields | more)


def dense(features: int, outs: int, name: str = "d", inputs: tuple[str, ...] = (), bits: int = 8) -> Layer:
    return Layer(
        name=name, op="Gemm", kind=LayerKind.DENSE, inputs=inputs, in_shape=(features, 1, 1),
        out_shape=(outs, 1, 1), weight_bits=bits, activation_bits=bits, out_bits=bits,
        macs=features * outs, weights=features * outs,
    )  # fmt: skip


def quantized(
    folder: Path,
    net: nn.Module,
    shape: tuple[int, ...],
    bits: tuple[int, int] = (8, 8),
    device: str = "zcu104",
) -> Path:
    """An ONNX file of a network under a device's scheme at these bits, calibrated on random numbers in 0…1."""
    scheme = shipped(device).quantization
    scheme = scheme.model_copy(
        update={
            "weights": scheme.weights.with_dtype(f"int{bits[0]}"),
            "activations": scheme.activations.with_dtype(f"int{bits[1]}"),
        }
    )
    graph = to_graph(net, shape)
    insert(graph, scheme)
    calibrate(graph, [torch.rand(64, *shape, generator=torch.Generator().manual_seed(0))])
    path = folder / "quantized.onnx"
    export_onnx(deployed(graph), shape, path, {})
    return path


def mlp(*widths: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    steps: list[nn.Module] = [nn.Flatten()]
    for index, (ins, outs) in enumerate(pairwise(widths)):
        steps += [nn.Linear(ins, outs), *([nn.ReLU()] if index < len(widths) - 2 else [])]
    return nn.Sequential(*steps)
