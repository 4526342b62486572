"""Build an engine for GPUs that are not here, and say in our words why it cannot be built.

Reference:
    NVIDIA TensorRT for RTX 1.7 documentation, ahead-of-time compilation; the messages below were seen with it.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import tensorrt_rtx_bindings as trt

from hwopt.core.backend import Compiled, Reason, Recipe
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import ConfigError, StageFailedError

_MOST: Final = 64  # samples of the optimization profile
_DTYPES: Final = re.compile(
    r"Cannot compile for target\(s\) ([\w, ]+?), because the model contains HW-specific datatypes: ([\w, ]+)\."
)
_DIGITS: Final = re.compile(r"sm(\d+)")
_TURING: Final = re.compile(r"Cannot compile operation '([^']*)' for Turing \(SM75\): (.+?) is not supported")
_STATIC: Final = (
    "quantize statically for this device: hwopt quantize MODEL --target DEVICE --calibration FILE.npz"
)
_DYNAMIC_OPERATORS: Final = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


class _Log(trt.ILogger):
    """Keeps what the compiler says."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by the library."""
        self.lines.append((severity, message))

    def said(self, severity: Any) -> list[str]:
        """What it said at one severity, without its complaints that there is no driver."""
        return [text for s, text in self.lines if s == severity and "catchCudaError" not in text]


def compile_model(model: Path, hardware: HardwareProfile, batch: int, /) -> Compiled:
    """Build for the compute capability that the profile names.

    Args:
        batch: what the engine is tuned for; it takes 1 to 64, or more where this is more.
    Raises:
        ConfigError: the compiler does not serve the device, or an axis besides the first is free.
    """
    log = _Log()
    capabilities = list(_capabilities(hardware))
    builder = trt.Builder(log)
    network = builder.create_network(0)  # strongly typed: precision comes from the file alone
    parser = trt.OnnxParser(network, log)
    start = time.perf_counter()
    if not parser.parse(model.read_bytes()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return _refused([parse_reason(error) for error in errors], start)
    config = builder.create_builder_config()
    # Left at 0 it builds for a portable default, and takes types that the device has not.
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(capability, index):
            raise StageFailedError(f"TensorRT for RTX refused compute capability {capability}")
    _profile(builder, config, network, batch, model)
    silent = [_imported_as_int8(text) for text in log.said(trt.ILogger.Severity.WARNING) if "UINT8" in text]
    if silent:
        return _refused(silent[:1], start)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = log.said(trt.ILogger.Severity.ERROR)
        return _refused([build_reason(said, hardware)], start)
    warnings = dict.fromkeys(text.strip() for text in log.said(trt.ILogger.Severity.WARNING))
    return Compiled(
        accepted=True,
        engine_bytes=int(plan.nbytes),
        seconds=time.perf_counter() - start,
        notes=tuple(warnings),
        compiler=_compiler(),
    )


def _refused(reasons: Sequence[Reason], start: float) -> Compiled:
    return Compiled(
        accepted=False,
        seconds=time.perf_counter() - start,
        reasons=tuple(reasons),
        compiler=_compiler(),
    )


def _compiler() -> str:
    return f"TensorRT for RTX {importlib.metadata.version('tensorrt-rtx-cu13-bindings')}"


def _capabilities(hardware: HardwareProfile) -> Iterator[Any]:
    if not hardware.isa:
        raise ConfigError(
            f"{hardware.name} names no compute capability, and the compiler would build for another device",
            fix="write it into the profile, for example isa: [cc8.9]",
        )
    known = {
        name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")
    }
    for name in hardware.isa:
        wanted = "SM" + name.removeprefix("cc").replace(".", "")
        if wanted not in known:
            served = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known)
            raise ConfigError(
                f"TensorRT for RTX builds no engines for {hardware.name} ({name}); it serves {served}",
                fix="measure on the device, with TensorRT: hwopt bench MODEL --runtime tensorrt --target DEVICE",
            )
        yield known[wanted]


def _profile(builder: Any, config: Any, network: Any, batch: int, model: Path) -> None:
    profile, free = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape[1:]):
            raise ConfigError(
                f"the input {tensor.name!r} has the shape {list(shape)}: only the first axis may be free",
                where=str(model),
                fix="fix the other axes when exporting",
            )
        if shape and shape[0] < 0:
            free = True
            profile.set_shape(tensor.name, *((n, *shape[1:]) for n in (1, batch, max(_MOST, batch))))
    if free:
        config.add_optimization_profile(profile)


def parse_reason(error: Any) -> Reason:
    """One error of the parser in our words."""
    code, operator = error.code().name, error.node_operator()
    place = f"{operator} {error.node_name() or '(unnamed)'}"
    said = error.desc().split("\n")[0]
    if code == "MODEL_DESERIALIZE_FAILED":
        return Reason(text="the compiler cannot read the file as ONNX", said=said)
    if "Non-zero zero point" in said:
        return Reason(
            text=f"{place} quantizes with a zero point other than 0; GPUs take symmetric quantization only",
            fix=_STATIC,
            said=said,
        )
    if "type Int32" in error.desc():
        return Reason(
            text=f"{place}: a bias is stored as int32; GPUs take float biases only",
            fix=_STATIC,
            said=error.desc().split("\n")[-1],
        )
    if operator in _DYNAMIC_OPERATORS:
        return Reason(
            text=f"{place} quantizes as the model runs; GPUs need static scales", fix=_STATIC, said=code
        )
    if code.startswith("UNSUPPORTED_NODE"):
        what = code.removeprefix("UNSUPPORTED_NODE").strip("_").lower() or "operator"
        return Reason(
            text=f"the compiler has no kernel for {place} ({what})", fix="rewrite the layer", said=code
        )
    return Reason(text=f"the compiler refuses {place}", said=f"{code}: {said}")


def _imported_as_int8(said: str) -> Reason:
    return Reason(
        text="the file quantizes to uint8, and the compiler would read that as int8: codes above 127 would be cut",
        fix=_STATIC,
        said=said,
    )


def _dotted(match: re.Match[str]) -> str:
    """``sm89`` as hardware profiles write it: ``cc8.9``."""
    return f"cc{match[1][:-1]}.{match[1][-1]}"


def build_reason(said: Sequence[str], hardware: HardwareProfile) -> Reason:
    """Why no engine came out, in our words."""
    text = next((line for line in said if "Error Code" in line), said[-1] if said else "no reason given")
    match = _DTYPES.search(text)
    if match:
        return Reason(
            text=f"{hardware.name} ({_DIGITS.sub(_dotted, match[1])}) has no {match[2]} arithmetic",
            fix="quantize to a type that the device has: hwopt hardware show DEVICE",
            said=text,
        )
    match = _TURING.search(text)
    if match:
        return Reason(
            text=f"on {hardware.name} (Turing) the compiler has no kernel for {match[2]}",
            fix="convert the model to float16",
            said=text,
        )
    return Reason(text="the compiler built no engine", said=text)


def load(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> NoReturn:
    """Nothing is run by this backend."""
    raise StageFailedError(
        "TensorRT for RTX is used to compile only; it runs nothing here",
        fix="measure on the device with TensorRT",
    )
