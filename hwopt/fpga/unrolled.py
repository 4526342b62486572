"""The unrolled layout: an adder graph for every weight matrix, a result every cycle."""

from __future__ import annotations

from math import ceil, log2
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hwopt.core.fpga import FpgaFabric, Layout
from hwopt.core.measurement import Interval
from hwopt.errors import ConfigError
from hwopt.fpga import wiring
from hwopt.fpga.design import Design, Resources, Unit, needs, uncounted
from hwopt.layer_table import Layer, LayerKind, layer_table

LEVELS: Final = 5  # adders between two registers
# Of adders without sharing; da4ml saves about half of them by subexpressions that several sums have in common.
_SHARED: Final = 0.52


def unrolled(path: Path, fabric: FpgaFabric, clock_mhz: float | None = None) -> Design:
    """A network of linear layers wired from its weights.

    With da4ml installed its adder graph is built and counted; without it the nonzero signed digits of the
    weights are.

    Raises:
        ConfigError: other layers than linear ones, or more weights than are wired.
    """
    layers = layer_table(path)
    others = [x for x in layers if (x.kind is not LayerKind.DENSE or x.pixels > 1) and not x.constant]
    if others:
        raise ConfigError(
            f"the unrolled layout wires linear layers of one vector, and {others[0].name} is {others[0].op}",
            fix="choose the streaming layout",
        )
    weights = sum(x.weights for x in layers)
    if weights > wiring.MOST_WEIGHTS:
        raise ConfigError(
            f"the model has {weights:,} weights, and {wiring.MOST_WEIGHTS:,} are wired at most",
            fix="choose the streaming layout, or prune the model",
        )
    matrices = _matrices(path, layers)
    rough = [adder_luts(m, x.activation_bits) for m, x in zip(matrices, layers, strict=True)]
    depth = sum(ceil(log2(max(2, x.columns))) + 2 for x in layers)
    if wiring.installed():
        wires = wiring.Wires(path)
        lut, ff, stages = wires.count(LEVELS)
        flow = "unrolled"
        notes = ("adder graphs by da4ml",)
    else:
        lut = sum(rough)
        ff, stages = lut * 0.3, ceil(depth / LEVELS) + 1
        flow = "unrolled without da4ml"
        notes = (
            "nonzero digits of the weights were counted; pip install 'hwopt[fpga]' builds the adder graphs",
        )
    total = Resources(lut=lut, ff=ff)
    units = tuple(
        Unit(
            layer=layer,
            cycles=1,
            p=layer.rows,
            q=layer.columns,
            weights_in="logic",
            resources=Resources(lut=lut * share / sum(rough), ff=ff * share / sum(rough)),
        )
        for layer, share in zip(layers, rough, strict=True)
    )
    return Design(
        layout=Layout.UNROLLED,
        fabric=fabric,
        clock_mhz=clock_mhz or fabric.clock_mhz,
        units=units,
        interval=1,
        cycles=Interval(stages, stages, stages),
        needs=needs(total, fabric, flow),
        notes=notes,
        unknown=uncounted(total, fabric),
    )


def adder_luts(weights: npt.NDArray[np.int64], bits: int) -> float:
    """LUTs of a constant matrix product: an adder a nonzero signed digit, less the first of each sum.

    Args:
        weights: integers, shape (outputs, inputs).
        bits: of the inputs.
    Reference:
        Canonical signed digits: Avizienis, IRE Trans. Electronic Computers 1961; a LUT a bit of an adder.
    """
    digits = signed_digits(weights).sum(1)
    adders = np.maximum(digits - 1, 0)
    wide = bits + np.log2(np.maximum(np.abs(weights).sum(1), 2))
    return float((adders * (bits + wide) / 2).sum() * _SHARED) + 1.0


def signed_digits(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Nonzero digits of the canonical signed form of integers, element by element: those of w xor 3w, halved."""
    absolute = np.abs(weights.astype(np.int64))
    changed = absolute ^ (3 * absolute)
    count = np.zeros_like(absolute)
    while changed.any():
        count += changed & 1
        changed >>= 1
    return count


def _matrices(path: Path, layers: list[Layer]) -> list[npt.NDArray[np.int64]]:
    """Integer weights of the layers, shape (outputs, inputs)."""
    graph = onnx.load(path).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    maker = {o: node for node in graph.node for o in node.output}
    by_name = {node.name or node.output[0]: node for node in graph.node}
    found = []
    for layer in layers:
        if layer.constant:
            found.append(np.zeros((1, 1), np.int64))
            continue
        source = maker.get(by_name[layer.name].input[1])
        if source is None or source.input[0] not in stored:
            raise ConfigError(f"the weights of {layer.name} are no integers", fix="quantize the model first")
        codes = np.asarray(stored[source.input[0]]).astype(np.int64)
        node = by_name[layer.name]
        rows_first = any(a.name == "transB" and a.i for a in node.attribute)
        found.append(codes if rows_first else codes.T)
    return found
