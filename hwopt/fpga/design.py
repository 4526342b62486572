"""A design: units with their foldings, what they occupy, and how long a frame takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hwopt.core.fpga import FpgaFabric, Layout, ResourceName
from hwopt.core.measurement import Interval
from hwopt.fpga import bands
from hwopt.layer_table import Layer


@dataclass(frozen=True, slots=True)
class Resources:
    """What a circuit occupies, in the device's own blocks; ``lut`` in tables of six inputs."""

    lut: float = 0.0
    ff: float = 0.0
    dsp: float = 0.0
    bram: float = 0.0
    uram: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.lut + other.lut,
            self.ff + other.ff,
            self.dsp + other.dsp,
            self.bram + other.bram,
            self.uram + other.uram,
        )

    def items(self) -> list[tuple[ResourceName, float]]:
        """Name and amount of each."""
        return [(name, getattr(self, name)) for name in NAMES]


NOTHING: Final = Resources()
NAMES: Final[tuple[ResourceName, ...]] = ("lut", "ff", "dsp", "bram", "uram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One layer's circuit; in an overlay, one layer's turn."""

    layer: Layer
    cycles: float  # for one frame
    p: int = 1  # processing elements: rows of the matrix at a time
    q: int = 1  # SIMD lanes: columns of the matrix at a time
    depth: float = 0.0  # cycles from the last input that a pixel needs to that pixel
    in_dsp: bool = False
    weights_in: str = ""  # lutram, bram, uram, logic
    resources: Resources = Resources()
    on_chip_bytes: float = 0.0  # weights and line buffers
    off_chip_bytes: float = 0.0  # for one frame

    @property
    def reuse(self) -> int:
        """hls4ml's reuse factor: products that share a multiplier."""
        return max(1, self.layer.rows * self.layer.columns // (self.p * self.q))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How much of one resource a design takes, with its band, of how much may be used."""

    estimate: float
    low: float
    high: float
    usable: float
    available: float

    @property
    def fits(self) -> bool:
        """Whether the upper end does."""
        return self.high <= self.usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A whole network on a fabric. Times are estimates with a band, in cycles of ``clock_mhz``."""

    layout: Layout
    fabric: FpgaFabric
    clock_mhz: float
    units: tuple[Unit, ...]
    interval: float  # cycles between frames
    cycles: Interval  # from the first input word to the last output
    needs: Mapping[str, Need]
    fifo_words: Mapping[str, int] = field(default_factory=dict)  # on skip paths, by the layer that reads them
    notes: tuple[str, ...] = ()
    missed: str = ""  # the asked frame rate, where it is not reached
    unknown: tuple[str, ...] = ()  # resources that no source counts, so that nothing is judged by them

    @property
    def short(self) -> tuple[str, ...]:
        """What is lacking and by how much, in words; empty where the design fits."""
        return tuple(
            f"{name}: needs up to {need.high:,.0f}, {need.usable:,.0f} are usable ({need.high / need.usable:.2f} times)"
            if need.usable
            else f"{name}: needs up to {need.high:,.0f}, and the device has none"
            for name, need in self.needs.items()
            if not need.fits
        )

    @property
    def fits(self) -> bool | None:
        """Whether the upper end of every resource does; None where one that is needed is not counted."""
        if self.short or self.missed:
            return False
        return None if self.unknown else True

    @property
    def verdict(self) -> str:
        """In words."""
        if self.short:
            return "does not fit"
        if self.missed:
            return "fits, but is too slow"
        return "cannot be judged" if self.unknown else "fits"

    @property
    def bottleneck(self) -> Unit:
        """The unit that takes the most cycles."""
        return max(self.units, key=lambda unit: unit.cycles)

    @property
    def frames_per_second(self) -> float:
        """In steady state."""
        return self.clock_mhz * 1e6 / self.interval


def have(fabric: FpgaFabric) -> dict[ResourceName, int | None]:
    """What the device has; None where no source says."""
    return {
        "lut": fabric.lut,
        "ff": fabric.ff,
        "dsp": fabric.dsp,
        "bram": fabric.bram.count,
        "uram": fabric.uram.count if fabric.uram else 0,
    }


def usable(fabric: FpgaFabric) -> dict[ResourceName, float]:
    """What a design may occupy: the share that tools place and route, less the shell."""
    return {
        name: float(max(0, int(amount * fabric.usable.get(name, 1.0) + 1e-9) - fabric.shell.get(name, 0)))
        for name, amount in have(fabric).items()
        if amount is not None
    }


def band_of(fabric: FpgaFabric, flow: str, name: str) -> bands.Band:
    """The band of a resource on a device: wider where its tables are none of six inputs."""
    band = bands.of(flow, name)
    if name == "lut" and fabric.lut_per_lut6 != 1.0:
        return bands.Band(band.low * bands.OTHER_TABLES.low, band.high * bands.OTHER_TABLES.high)
    return band


def needs(total: Resources, fabric: FpgaFabric, flow: str) -> dict[str, Need]:
    """Resources with their bands, in the device's own tables, beside what may be used."""
    limits, whole = usable(fabric), have(fabric)
    found: dict[str, Need] = {}
    for name in NAMES:
        if name not in limits or (name == "uram" and not whole[name] and not total.uram):
            continue
        amount = getattr(total, name) * (fabric.lut_per_lut6 if name == "lut" else 1.0)
        band = band_of(fabric, flow, name)
        found[name] = Need(
            estimate=amount,
            low=amount * band.low,
            high=amount * band.high,
            usable=limits[name],
            available=float(whole[name] or 0),
        )
    return found


def uncounted(total: Resources, fabric: FpgaFabric) -> tuple[str, ...]:
    """Resources that the design takes and whose number on the device no source gives."""
    limits = usable(fabric)
    return tuple(name for name, amount in total.items() if amount and name not in limits)
