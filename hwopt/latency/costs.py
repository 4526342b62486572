"""What a network costs at other widths, as a share of its full width: the answers that pruning searches with.

Four kinds, one interface: latency measured on this machine, latency by a roofline of the device, latency of the
design that fits an FPGA, and multiply-accumulates. Each says which tier its numbers are.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from torch import nn

from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.errors import ConfigError, StageFailedError
from hwopt.fpga.estimate import Wish, estimate, with_bits
from hwopt.latency.bench import Bench
from hwopt.latency.scaled import Scaled
from hwopt.layer_table import Layer, layers_of
from hwopt.pruning.cut import Keep, cut, everything, narrowed
from hwopt.pruning.structure import Structure
from hwopt.quantization.graph import to_graph
from hwopt.quantization.onnx_export import export_onnx

Build = Callable[[Keep], onnx.ModelProto]
Widths = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Shares of the cost at full width, for several widths at once."""

    tier: Tier
    unit: str  # what is counted: latency, or MACs
    of: Callable[[Sequence[Widths]], list[float]]

    def __call__(self, candidates: Sequence[Widths], /) -> list[float]:
        """Cost of each candidate over that of the full width."""
        return self.of(candidates)


def builder(module: nn.Module, structure: Structure, sample_shape: Sequence[int]) -> Build:
    """From kept units to a float ONNX model of those widths: resized where possible, else exported anew."""
    full = exported(module, sample_shape)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    try:
        scaled = Scaled(full, structure, shapes)
    except ValueError:

        def by_export(keep: Keep) -> onnx.ModelProto:
            trial = copy.deepcopy(module)
            cut(trial, structure, keep)
            return exported(trial, sample_shape)

        return by_export
    return scaled.at


def exported(module: nn.Module, sample_shape: Sequence[int]) -> onnx.ModelProto:
    """The float model as it is shipped: batch norm folded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(to_graph(module, sample_shape), sample_shape, path, {})
        return onnx.load(path)


def measured(structure: Structure, build: Build, bench: Bench, origin: onnx.ModelProto | None = None) -> Cost:
    """Latency on this machine; every answer times ``origin``, or the full width, anew beside them."""
    reference = build(everything(structure)) if origin is None else origin

    def of(candidates: Sequence[Widths]) -> list[float]:
        return bench.ratios(reference, [build(narrowed(structure, widths)) for widths in candidates])

    return Cost(tier=Tier.MEASURED, unit="latency", of=of)


def roofline(
    structure: Structure,
    build: Build,
    hardware: HardwareProfile,
    batch: int,
    origin: onnx.ModelProto | None = None,
) -> Cost:
    """Latency by Williams et al., CACM 2009: each layer takes the longer of its arithmetic and its traffic.

    Raises:
        ConfigError: the profile does not say how fast the device computes or loads.
    """
    compute, memory = hardware.compute, hardware.memory
    operations = None if compute is None else compute.ops_per_cycle.get("fp32")
    bandwidth = None if memory is None else memory.bandwidth_gbs
    if compute is None or operations is None or bandwidth is None:
        raise ConfigError(
            f"{hardware.name} gives no fp32 operations a cycle or no bandwidth, so that no latency follows",
            fix="give the goal in macs, or measure on the device",
        )
    # One unit: latency at small batch does not use them all.
    peak = operations * compute.clock_ghz * 1e9

    def seconds(layer: Layer) -> float:
        values = 4 * (batch * (prod(layer.in_shape) + prod(layer.out_shape)) + layer.weights)
        return max(2 * batch * layer.macs / peak, values / (bandwidth * 1e9))

    return _counted(structure, build, seconds, "latency", origin)


def folded(
    structure: Structure, build: Build, hardware: HardwareProfile, origin: onnx.ModelProto | None = None
) -> Cost:
    """Latency of the streaming design that fits an FPGA best, at the widths of the device's own scheme.

    Raises:
        StageFailedError: a layer has no circuit.
    """
    fabric, scheme = hardware.fpga, hardware.quantization
    if fabric is None:
        raise ConfigError(f"{hardware.name} is no FPGA", fix="give the goal in macs")

    def latency(model: onnx.ModelProto) -> float:
        layers = with_bits(layers_of(model), scheme.weights.type.bits, scheme.activations.type.bits)
        return estimate(layers, fabric, Wish())[0].cycles.estimate

    return _totalled(structure, build, latency, "latency", origin)


def macs(structure: Structure, build: Build, origin: onnx.ModelProto | None = None) -> Cost:
    """Multiply-accumulates."""
    return _counted(structure, build, lambda layer: float(layer.macs), "macs", origin)


def _counted(
    structure: Structure,
    build: Build,
    price: Callable[[Layer], float],
    unit: str,
    origin: onnx.ModelProto | None,
) -> Cost:
    def total(model: onnx.ModelProto) -> float:
        return sum(price(layer) for layer in layers_of(model))

    return _totalled(structure, build, total, unit, origin)


def _totalled(
    structure: Structure,
    build: Build,
    total: Callable[[onnx.ModelProto], float],
    unit: str,
    origin: onnx.ModelProto | None,
) -> Cost:
    whole = total(build(everything(structure)) if origin is None else copy.deepcopy(origin))
    if whole <= 0:
        raise StageFailedError(f"the network has no {unit} to save", fix="give the goal as a ratio")

    def of(candidates: Sequence[Widths]) -> list[float]:
        return [total(build(narrowed(structure, widths))) / whole for widths in candidates]

    return Cost(tier=Tier.ESTIMATED, unit=unit, of=of)
