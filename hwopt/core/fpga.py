"""What an FPGA has to build with, and the ways in which a network is laid out on it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.settings import Settings

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ResourceName = Literal["lut", "ff", "dsp", "bram", "uram"]


class Layout(StrEnum):
    """How a network becomes a circuit."""

    STREAMING = "streaming"  # a unit a layer, weights on chip, frames flow through
    OVERLAY = "overlay"  # one array that layers take turns on, tensors in off-chip memory
    UNROLLED = "unrolled"  # every weight is wired: adders only, a result every cycle


class Flow(StrEnum):
    """Who generates a streaming circuit."""

    FINN = "finn"
    HLS4ML = "hls4ml"
    FPGACONVNET = "fpgaconvnet"


def misplaced(
    layout: Layout, flow: Flow, frames_per_second: float | None, overlay: str | None, cores: int | None
) -> str | None:
    """What belongs to another layout, in words."""
    if layout is not Layout.OVERLAY and (overlay is not None or cores is not None):
        return "overlay and cores belong to the overlay layout"
    if layout is not Layout.STREAMING and flow is not Flow.FINN:
        return f"the flow {flow} belongs to the streaming layout"
    if layout is Layout.UNROLLED and frames_per_second is not None:
        return "an unrolled design gives a result every cycle: there is no frame rate to ask for"
    return None


class DspPacking(Settings):
    """Multiply-accumulates that one DSP block does in a cycle at given operand widths."""

    weight_bits: PositiveInt  # up to and including
    activation_bits: PositiveInt
    macs: PositiveInt


class Blocks(Settings):
    """On-chip memory of one kind: how many, and the shapes that one block can take."""

    count: NonNegativeInt | None  # null where no source confirms it
    shapes: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1)]  # words × bits

    def needed(self, words: int, bits: int) -> int:
        """Blocks of a memory of ``words`` × ``bits``: the cheapest of the shapes, tiled."""
        return min(ceil(words / deep) * ceil(bits / wide) for deep, wide in self.shapes)

    @property
    def kbit(self) -> float:
        """Capacity of one block."""
        return max(deep * wide for deep, wide in self.shapes) / 1024


class Power(Settings):
    """Watts of the board, and what single actions take; null where no source says."""

    static_w: NonNegativeFloat | None = None  # of the chip, nothing toggling
    board_w: NonNegativeFloat | None = None  # of the whole board while a design of usual size runs
    pj_per_dram_bit: NonNegativeFloat | None = None


class Overlay(Settings):
    """An accelerator that is laid out once and computes layer after layer.

    ``array`` are the multiply-accumulates of a cycle: output pixels × input channels × output channels for a
    ``dpu``, rows × columns for a ``systolic`` array.
    """

    kind: Literal["dpu", "systolic"]
    array: tuple[PositiveInt, ...]
    dataflow: Literal["output", "weight", "input"] = "weight"  # what a systolic array keeps in place
    cores: PositiveInt = 1
    clock_mhz: PositiveFloat
    weight_bits: PositiveInt = 8
    activation_bits: PositiveInt = 8
    bytes_per_cycle: PositiveFloat  # of one core to off-chip memory
    ddr_gbs: PositiveFloat | None = (
        None  # of all cores together; null where they do not get in each other's way
    )
    bank_bytes: NonNegativeInt = 0  # on-chip memory that keeps a layer's result for the next one
    layer_us: NonNegativeFloat = 0.0  # to start a layer
    host_ns_per_pixel: NonNegativeFloat = 0.0  # of the input, on the CPU beside it
    host_ns_per_output: NonNegativeFloat = 0.0
    lut: NonNegativeInt | None = None  # of one core; null where no source says
    ff: NonNegativeInt | None = None
    dsp: NonNegativeInt | None = None
    bram: NonNegativeInt | None = None
    uram: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _array_fits_kind(self) -> Self:
        axes = 3 if self.kind == "dpu" else 2
        if len(self.array) != axes:
            raise ValueError(f"a {self.kind} array has {axes} axes, and this one {len(self.array)}")
        return self


class FpgaFabric(Settings):
    """What there is to build with, and how much of it may be used."""

    part: str
    clock_mhz: PositiveFloat
    lut: PositiveInt  # lookup tables; adaptive logic modules on Intel devices
    lut_per_lut6: PositiveFloat = 1.0  # of this device's tables that a function of six inputs takes
    ff: PositiveInt | None = None  # null where no source confirms it
    dsp: NonNegativeInt
    bram: Blocks  # halves of a 36-kbit block on AMD devices
    uram: Blocks | None = None
    dsp_packing: tuple[DspPacking, ...]  # the first entry wide enough wins
    usable: Mapping[ResourceName, Annotated[float, Field(gt=0, le=1)]]
    shell: Mapping[ResourceName, NonNegativeInt] = Field(
        default_factory=dict
    )  # taken by what feeds the design
    yosys: Literal["xc7", "xcup", "ecp5", "ice40"] | None = None  # family that open synthesis maps to
    max_stream_bits: PositiveInt = 36  # widest weight stream of one processing element
    input_bits: PositiveInt = 64  # of the input stream, a cycle
    power: Power = Power()
    overlays: Mapping[str, Overlay] = Field(default_factory=dict)  # by name; the first is the usual one

    @model_validator(mode="after")
    def _says_what_may_be_used(self) -> Self:
        for name in ("lut", "dsp", "bram"):
            if name not in self.usable:
                raise ValueError(f"`usable` says nothing of {name}")
        return self
