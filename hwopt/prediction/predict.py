"""The time of a model on a device that is not here, from its calibration or from its data sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hwopt.core.canonical import JSON
from hwopt.core.hardware import Calibration, DeviceKind, HardwareProfile
from hwopt.core.measurement import Interval, Tier
from hwopt.errors import ConfigError
from hwopt.prediction.work import FLOAT, INTEGER, Kernel, unpriced

# Share of the peak that kernels reach, and factors that hold most published results; from results of MLPerf
# Inference v4.1, see docs/prediction.md.
_REACHED: Final = {"conv": 0.42, "pointwise": 0.42, "dense": 0.42, "depthwise": 0.1}
_MEMORY: Final = 0.7
# Products that the layer table does not count; without their multiply-accumulates they would seem to cost nothing.
_PRODUCTS: Final = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "MatMulInteger",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
        "DynamicQuantizeLSTM",
        "LSTM",
        "GRU",
        "RNN",
        "Einsum",
        "Attention",
        "MultiHeadAttention",
        "Det",
        "Loop",
        "Scan",
        "If",
    }
)
_SPREAD_ONE: Final = 2.0  # of batch 1
_SPREAD_MANY: Final = 1.5  # of throughput
_MANY: Final = 32
_KERNEL_US: Final = {DeviceKind.CPU: 2.0, DeviceKind.GPU: 6.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds of one call."""

    seconds: Interval
    basis: str  # calibrated, or data sheet
    by_kind: Mapping[str, float]  # seconds by kind and type of kernel, and of the call itself
    spread: float  # factor around the estimate

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, in milliseconds."""
        return {
            "tier": Tier.PREDICTED.value,
            "basis": self.basis,
            "latency_ms": {
                "estimate": self.seconds.estimate * 1e3,
                "low": self.seconds.low * 1e3,
                "high": self.seconds.high * 1e3,
            },
            "spread": self.spread,
            "share_by_kind": {k: v / self.seconds.estimate for k, v in self.by_kind.items() if v},
        }


def _known(found: Sequence[Kernel]) -> None:
    names = unpriced(found)
    weighted = [name for name in names if name in _PRODUCTS]
    if weighted:
        raise ConfigError(
            f"{', '.join(weighted)}: how much these compute is not known, so that no time follows",
            fix="measure this model where the device is: hwopt bench",
        )


def predict(
    found: Sequence[Kernel], hardware: HardwareProfile, batch: int = 1, threads: int = 1
) -> Prediction:
    """Seconds of a model with these kernels.

    Raises:
        ConfigError: the profile says nothing of speed, or is calibrated for another number of threads.
    """
    if hardware.kind is DeviceKind.FPGA:
        raise ConfigError(
            f"{hardware.name} is an FPGA: its design is estimated, not predicted",
            fix=f"hwopt fpga estimate MODEL --target {hardware.name}",
        )
    _known(found)
    if not found:
        raise ConfigError("the model has no operator that takes time", fix="there is nothing to predict")
    if hardware.calibration is not None:
        if hardware.calibration.threads != threads:
            raise ConfigError(
                f"{hardware.name} is calibrated for {hardware.calibration.threads} threads, and {threads} are asked",
                fix=f"--threads {hardware.calibration.threads}, or calibrate again with that number",
            )
        return _calibrated(found, hardware.calibration)
    return _data_sheet(found, hardware, batch, threads)


def _calibrated(found: Sequence[Kernel], calibration: Calibration) -> Prediction:
    by_kind: dict[str, float] = {"call": calibration.call_us * 1e-6}
    for kernel in found:
        costs = calibration.costs.get(kernel.key)
        if costs is None:
            raise ConfigError(
                f"the calibration has no {kernel.key}, and {kernel.op or kernel.name} would count as free",
                fix="measure this model: hwopt bench",
            )
        picoseconds = sum(
            costs.get(name, 0.0) * value * (1e3 if name == "each" else 1.0)
            for name, value in kernel.features().items()
        )
        by_kind[kernel.key] = by_kind.get(kernel.key, 0.0) + picoseconds * 1e-12
    return _prediction(by_kind, f"calibrated on {calibration.cpu}, {calibration.runtime}", calibration.spread)


def _data_sheet(found: Sequence[Kernel], hardware: HardwareProfile, batch: int, threads: int) -> Prediction:
    compute, memory = hardware.compute, hardware.memory
    if compute is None or memory is None or memory.bandwidth_gbs is None:
        raise ConfigError(
            f"{hardware.name} gives no arithmetic or no bandwidth, so that no time follows",
            fix="calibrate it where it is (hwopt hardware calibrate), or name another device",
        )
    least = (compute.kernel_us or _KERNEL_US[hardware.kind]) * 1e-6
    by_kind: dict[str, float] = {}
    for kernel in found:
        if kernel.kind == "convert" and hardware.kind is DeviceKind.GPU:
            continue  # merged into the kernels around them
        rate = peak(hardware, kernel.dtype, threads) * _REACHED.get(kernel.kind, 1.0)
        moved = kernel.bytes / (memory.bandwidth_gbs * 1e9 * _MEMORY)
        seconds = max(2 * kernel.macs / rate, moved, least)
        by_kind[kernel.key] = by_kind.get(kernel.key, 0.0) + seconds
    return _prediction(by_kind, "data sheet", _SPREAD_MANY if batch >= _MANY else _SPREAD_ONE)


def peak(hardware: HardwareProfile, dtype: str, threads: int) -> float:
    """Operations a second; of float where the device has no faster integers."""
    compute = hardware.compute
    if compute is None:
        return 0.0
    for name in (dtype, FLOAT) if dtype == INTEGER else (FLOAT,):
        if name in compute.peak_tops:
            return compute.peak_tops[name] * 1e12
        if name in compute.ops_per_cycle:
            units = min(threads, compute.units) if hardware.kind is DeviceKind.CPU else compute.units
            return compute.ops_per_cycle[name] * compute.clock_ghz * 1e9 * units
    raise ConfigError(f"{hardware.name} does not say how fast it computes in {dtype}", fix="calibrate it")


def _prediction(by_kind: Mapping[str, float], basis: str, spread: float) -> Prediction:
    total = sum(by_kind.values())
    return Prediction(
        seconds=Interval(total, total / spread, total * spread), basis=basis, by_kind=by_kind, spread=spread
    )
