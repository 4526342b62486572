"""A device: what it can do, and therefore what a model for it must look like.

One YAML file a device in ``hardware_profiles/``. The quantization scheme, the pruning granularity, the
runtime and the cost model all follow from it, so that no stage asks which device it works for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.canonical import JSON, digest_of
from hwopt.core.fpga import FpgaFabric
from hwopt.core.settings import Settings

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_DTYPE: Final = re.compile(r"(u?)int([1-9]|1[0-6]|32)")


class DeviceKind(StrEnum):
    """The family of silicon."""

    CPU = "cpu"
    GPU = "gpu"
    FPGA = "fpga"


class QDType(Settings):
    """An integer type of 1 to 16 bits, or 32 for accumulators; written ``int8``, ``uint4`` and so on."""

    bits: Annotated[int, Field(ge=1, le=32)]
    signed: bool

    @classmethod
    def parse(cls, text: str) -> QDType:
        """``"uint4"`` to its value; ValueError for anything else."""
        match = _DTYPE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not an integer type: write int1 … int16, uint1 … uint16")
        return cls(bits=int(match[2]), signed=not match[1])

    @property
    def low(self) -> int:
        """Least code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Greatest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"


class TensorScheme(Settings):
    """How one family of tensors (weights or activations) becomes integers."""

    dtype: str
    symmetric: bool
    granularity: Literal["tensor", "channel"]
    range: tuple[int, int] | None = None  # codes in use; None is the whole type
    nonnegative: str | None = None  # the type of tensors that cannot be negative, such as after ReLU
    also: tuple[str, ...] = ()  # further types that this device executes as integers, on request
    block: Annotated[int, Field(ge=16)] | None = None  # input channels that share a scale; a power of two

    @model_validator(mode="after")
    def _range_fits_type(self) -> Self:
        dtype = QDType.parse(self.dtype)
        for other in (*self.also, *([self.nonnegative] if self.nonnegative else [])):
            QDType.parse(other)
        low, high = self.codes
        if not dtype.low <= low < high <= dtype.high:
            raise ValueError(f"range {[low, high]} does not lie inside {dtype}: {[dtype.low, dtype.high]}")
        if self.symmetric and dtype.signed and low > 0:
            raise ValueError("a symmetric range holds 0")
        if self.block is not None and (self.block & (self.block - 1) or self.granularity != "channel"):
            raise ValueError("block is a power of two, and goes with granularity channel")
        return self

    @property
    def type(self) -> QDType:
        """The parsed type."""
        return QDType.parse(self.dtype)

    @property
    def codes(self) -> tuple[int, int]:
        """Least and greatest code in use."""
        return self.range if self.range is not None else (self.type.low, self.type.high)

    def with_dtype(self, dtype: str) -> TensorScheme:
        """The same scheme at another type, over that type's full range."""
        if dtype == self.dtype:
            return self
        signed = QDType.parse(dtype)
        nonnegative = f"uint{signed.bits}" if self.nonnegative and signed.signed else None
        return self.model_copy(update={"dtype": dtype, "range": None, "nonnegative": nonnegative})


class Mode(StrEnum):
    """When activations become integers."""

    STATIC = "static"  # on scales from calibration or training
    DYNAMIC = "dynamic"  # on the range of each input as it runs; matrix products only
    WEIGHT_ONLY = "weight_only"  # never: weights are stored in few bits, arithmetic is float


class LayerRule(Settings):
    """Other types for the layers that a pattern names; of several rules the first match wins."""

    layers: str = ".*"  # regular expression for the whole name of a layer's weight, or of its operator
    operators: tuple[str, ...] = ()  # ONNX types; none means every type
    weights: str | None = None  # None keeps the scheme's type
    activations: str | None = None  # of the layer's inputs
    keep_float: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"{self.layers!r} is not a regular expression: {error}") from None
        for dtype in (self.weights, self.activations):
            if dtype is not None:
                QDType.parse(dtype)
        if self.keep_float == bool(self.weights or self.activations):
            raise ValueError("a rule names types, or says keep_float: true")
        return self


class QuantizationScheme(Settings):
    """What the device needs from a quantized model.

    ``placement`` says where Q/DQ pairs go: ``outputs`` quantizes every tensor that enters or leaves an
    operator in ``operators`` (ONNX Runtime and OpenVINO fuse Q at the output); ``inputs`` quantizes only
    what enters a weighted operator (TensorRT). A bias is ``int32`` in the accumulator, ``float`` inside the
    operator, or ``apart``: linear layers add it behind their quantized output, because ONNX Runtime runs a
    product with a float bias in float and TensorRT takes no int32 bias.
    """

    weights: TensorScheme
    activations: TensorScheme
    bias: Literal["int32", "float", "apart"] = "int32"
    scale: Literal["float", "power_of_two"] = "float"
    placement: Literal["outputs", "inputs"] = "outputs"
    depthwise: Literal["integer", "float"] = "integer"  # float where integer kernels for them are lacking
    mode: Mode = Mode.STATIC
    operators: tuple[str, ...]  # ONNX operator types that run in integer on this device
    why: str  # one sentence: the property of the silicon behind the choice

    def facet(self) -> dict[str, JSON]:
        """What an artifact depends on: everything but the prose."""
        data = self.to_json()
        data.pop("why")
        return data

    def digest(self) -> str:
        """Equal for two devices that ask for the same model."""
        return digest_of(self.facet())


class Compute(Settings):
    """Arithmetic of the whole device; a multiply-accumulate counts as two operations."""

    units: PositiveInt  # cores, streaming multiprocessors, or DPU cores
    clock_ghz: PositiveFloat
    ops_per_cycle: Mapping[str, PositiveFloat] = Field(default_factory=dict)  # per unit, by data type
    peak_tops: Mapping[str, PositiveFloat] = Field(
        default_factory=dict
    )  # whole device, dense, by data type, 1e12 operations a second
    kernel_us: PositiveFloat | None = None  # least time of one kernel, whatever it does


class Calibration(Settings):
    """What a micro-suite measured on one machine: seconds of a kernel as a sum of what it does.

    ``costs`` has a table for each kind of layer and type, such as ``conv.int8``: picoseconds a
    multiply-accumulate (``macs``), a byte that is moved (``bytes``), a byte that is gathered for the product
    (``gather``), and nanoseconds of every kernel (``each``).
    """

    version: Literal[1] = 1
    cpu: str  # of the machine
    runtime: str  # name and version
    threads: PositiveInt = 1
    reference_ms: PositiveFloat  # of the reference workload at that time
    call_us: NonNegativeFloat  # of every call, beside its kernels
    costs: Mapping[str, Mapping[str, NonNegativeFloat]]
    spread: PositiveFloat  # a prediction lies within this factor of the truth, nine times out of ten
    models: PositiveInt  # that it was fitted on


class Memory(Settings):
    """Off-chip memory and caches."""

    bandwidth_gbs: PositiveFloat | None = None  # 1e9 bytes a second; null where no source confirms it
    capacity_gb: PositiveFloat | None = None
    caches_kib: Mapping[str, PositiveInt] = Field(default_factory=dict)


class Pruning(Settings):
    """Widths that the device likes."""

    channel_multiple: PositiveInt = 1
    least_channels: PositiveInt = 1


class HardwareProfile(Settings):
    """One device."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    kind: DeviceKind
    title: str
    arch: Literal["x86_64", "aarch64"] | None = None  # CPUs only
    isa: tuple[str, ...] = ()  # CPU features, or the CUDA compute capability as cc8.9
    isa_absent: tuple[str, ...] = ()  # features whose presence makes it another device
    describes_host: bool = True  # False: chosen by name only, never found by detection
    compute: Compute | None = None
    memory: Memory | None = None
    fpga: FpgaFabric | None = None
    runtimes: tuple[str, ...]  # backends, best first
    quantization: QuantizationScheme
    pruning: Pruning = Pruning()
    calibration: Calibration | None = None  # what prediction uses instead of the figures above
    sources: dict[str, str]  # field path or its prefix -> document

    @model_validator(mode="after")
    def _fabric_iff_fpga(self) -> Self:
        if (self.kind is DeviceKind.FPGA) != (self.fpga is not None):
            raise ValueError("a profile of kind fpga has a section `fpga`, and no other kind has")
        return self

    def digest(self) -> str:
        """Of every field."""
        return digest_of(self.to_json())
