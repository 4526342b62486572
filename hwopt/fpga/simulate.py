"""Latency of a pipeline of units, pixel by pixel.

FINN's own figure is the sum of all layers' cycles, several times what boards measure; here a layer starts a
pixel as soon as the pixels that it needs are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Final

import numpy as np
import numpy.typing as npt

from hwopt.errors import StageFailedError
from hwopt.fpga.design import Unit
from hwopt.layer_table import Layer, LayerKind

_PIXELS: Final = 2**23  # of one plane
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What one simulated frame shows."""

    cycles: float  # from the first input word to the last output
    fifo_words: Mapping[str, int]  # pixels that wait on the earlier side of a join, by the join


def stream_times(arrival: Float, needed: Index, interval: float, depth: float = 0.0) -> Float:
    """When each output pixel leaves a pipelined layer, in cycles.

    ``out_k = max(out_{k-1}, arrival[needed_k]) + interval``: a layer starts a pixel when the last input pixel
    of its window is there, and spends ``interval`` cycles on each; ``depth`` is the way through its registers.

    Args:
        arrival: when each input pixel arrives, shape (inputs,), rising.
        needed: for each output pixel the index of the last input pixel it needs, shape (outputs,).
        interval: cycles a pixel.
        depth: cycles by which all outputs are later.
    Returns:
        shape (outputs,).
    Reference:
        The recurrence of an event simulation in closed form: with k·interval taken off, it is a running
        maximum.
    """
    steps = np.arange(len(needed), dtype=np.float64) * interval
    result: Float = np.maximum.accumulate(arrival[needed] - steps) + steps + (interval + depth)
    return result


def last_needed(layer: Layer) -> Index:
    """For each output pixel in raster order, the raster index of the last input pixel of its window."""
    (in_rows, in_columns), out = plane(layer.in_shape), plane(layer.out_shape)
    (k0, k1), (s0, s1), (t, left) = layer.reach, layer.stride, layer.padding
    rows = np.clip(np.arange(out[0]) * s0 - t + k0 - 1, 0, in_rows - 1)
    columns = np.clip(np.arange(out[1]) * s1 - left + k1 - 1, 0, in_columns - 1)
    return (rows[:, None] * in_columns + columns[None, :]).ravel().astype(np.int64)


def needed(layer: Layer, arrivals: int) -> Index:
    """The same for every kind of layer."""
    outputs = prod(plane(layer.out_shape))
    if layer.kind is LayerKind.GLOBAL_POOL or outputs == 1:
        return np.full(outputs, arrivals - 1, np.int64)
    if layer.kind is LayerKind.UPSAMPLE:
        rows, columns = plane(layer.out_shape)
        step = rows // plane(layer.in_shape)[0], columns // plane(layer.in_shape)[1]
        index = (np.arange(rows)[:, None] // step[0]) * (columns // step[1]) + np.arange(columns) // step[1]
        return index.ravel().astype(np.int64)
    if arrivals == outputs and prod(layer.kernel) == 1:
        return np.arange(outputs, dtype=np.int64)
    if plane(layer.in_shape) == (1, arrivals) or prod(plane(layer.in_shape)) == arrivals:
        return np.minimum(last_needed(layer), arrivals - 1)
    # A change of view in between: in step with the input.
    return ((np.arange(outputs, dtype=np.int64) + 1) * arrivals // outputs - 1).clip(0)


def simulate(units: Sequence[Unit], input_bits: int) -> Flow:
    """One frame through the pipeline.

    Args:
        units: in topological order, of layers whose ``inputs`` name the layers before them.
        input_bits: of the input stream, a cycle.
    Raises:
        StageFailedError: the frame is too large to be followed pixel by pixel.
    """
    entry = input_cycles(units, input_bits)
    cycles, _ = _run(units, entry, 0.0)
    # In a running pipeline no unit is faster than the slowest, and full queues hold the others back: what waits
    # at a join is counted at that pace.
    _, fifos = _run(units, entry, max(entry, *(unit.cycles for unit in units)))
    return Flow(cycles=cycles, fifo_words=fifos)


def input_cycles(units: Sequence[Unit], input_bits: int) -> float:
    """Cycles in which a frame comes in."""
    first = units[0].layer
    words = max(1, ceil(first.in_shape[0] * min(first.activation_bits, 32) / input_bits))
    return float(prod(plane(first.in_shape)) * words)


def _run(units: Sequence[Unit], entry: float, pace: float) -> tuple[float, dict[str, int]]:
    """Cycles of a frame and pixels that wait at joins, with no unit faster than ``pace`` cycles a frame."""
    pixels = prod(plane(units[0].layer.in_shape))
    most = max(pixels, *(prod(plane(unit.layer.out_shape)) for unit in units))
    if most > _PIXELS:
        raise StageFailedError(
            f"a plane has {most:,} pixels, and {_PIXELS:,} are simulated at most",
            fix="export the model at its real size",
        )
    times: dict[str, Float] = {"": (np.arange(pixels, dtype=np.float64) + 1) * (max(entry, pace) / pixels)}
    fifos: dict[str, int] = {}
    last = ""
    for unit in units:
        layer = unit.layer
        sources = [times[source] for source in layer.inputs if source in times] or [times[last]]
        arrival = sources[0]
        if len(sources) > 1:
            arrival, fifos[layer.name] = _join(sources)
        wanted = needed(layer, len(arrival))
        # A sum over the plane takes its pixels as they come; only the last one's share comes after it.
        steps = len(arrival) if layer.kind is LayerKind.GLOBAL_POOL else len(wanted)
        times[layer.name] = stream_times(arrival, wanted, max(unit.cycles, pace) / steps, unit.depth)
        last = layer.name
    return float(max(t[-1] for t in times.values())), fifos


def _join(sources: Sequence[Float]) -> tuple[Float, int]:
    """A join waits for its slower side; the earlier sides queue meanwhile."""
    length = max(len(s) for s in sources)
    sides = [s if len(s) == length else np.full(length, s[-1]) for s in sources]
    both: Float = np.max(sides, axis=0)
    waiting = 0
    for side in sides:
        # Pixels of this side that are there when pixel k leaves, less those that left.
        there = np.searchsorted(side, both, side="right")
        waiting = max(waiting, int((there - np.arange(length)).max()))
    return both, waiting


def plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a C×H×W shape."""
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
