"""Unrolled networks: what the estimator says, and what Yosys counts after mapping the Verilog."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from hwopt.config.hardware import shipped
from hwopt.core.fpga import FpgaFabric
from hwopt.fpga import rtl, wiring
from hwopt.fpga.unrolled import unrolled
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, deployed, insert
from hwopt.quantization.onnx_export import export_onnx

# Widths of the layers, bits of weights and activations: the sizes of the single layers in shared/design, and networks.
NETS = [
    ((32, 32), 2, 8), ((16, 32), 3, 8), ((32, 16), 4, 8), ((16, 16), 6, 8), ((16, 16), 8, 8), ((8, 32), 8, 8),
    ((16, 64), 4, 8), ((16, 16, 8), 5, 8), ((16, 32, 16, 5), 6, 6), ((64, 16, 10), 4, 4),
]  # fmt: skip


def quantized(
    widths: tuple[int, ...], weight_bits: int, activation_bits: int, path: Path, seed: int = 0
) -> None:
    torch.manual_seed(seed)
    steps: list[nn.Module] = []
    for index, (ins, outs) in enumerate(pairwise(widths)):
        steps += [nn.Linear(ins, outs), *([nn.ReLU()] if index < len(widths) - 2 else [])]
    scheme = shipped("zcu104").quantization
    scheme = scheme.model_copy(
        update={
            "weights": scheme.weights.with_dtype(f"int{weight_bits}"),
            "activations": scheme.activations.with_dtype(f"int{activation_bits}"),
        }
    )
    graph = to_graph(nn.Sequential(*steps), (widths[0],))
    insert(graph, scheme)
    calibrate(graph, [torch.rand(256, widths[0])])
    export_onnx(deployed(graph), (widths[0],), path, {})


def fabric() -> FpgaFabric:
    found = shipped("pynq-z2").fpga
    assert found is not None
    return found


def show() -> None:
    print("network            bits   LUT estimate  digits only   Yosys   error   FF estimate   Yosys   error")
    for widths, w, a in NETS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            quantized(widths, w, a, path)
            design = unrolled(path, fabric())
            installed, wiring.installed = wiring.installed, lambda: False
            try:
                rough = unrolled(path, fabric()).needs["lut"].estimate
            finally:
                wiring.installed = installed
            made = rtl.synthesize(rtl.write(wiring.Wires(path), Path(folder) / "v"))
        lut, ff = design.needs["lut"].estimate, design.needs["ff"].estimate
        print(
            f"{'-'.join(map(str, widths)):18s} {w}:{a}   {lut:9,.0f} {rough:12,.0f} {made.lut:10,} {lut / made.lut - 1:+7.1%} {ff:12,.0f} {made.ff:8,} {ff / made.ff - 1:+7.1%}",
            flush=True,
        )
