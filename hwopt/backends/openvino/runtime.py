"""Execute ONNX models in OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from hwopt.core.backend import NodePrecision, OperatorTime, Optimization, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import StageFailedError

_WEIGHTED: Final = frozenset(
    {
        "Convolution",
        "GroupConvolution",
        "Deconvolution",
        "FullyConnected",
        "MatMul",
        "LSTMCell",
        "LSTMSequence",
        "GRUCell",
        "GRUSequence",
        "RNNSeq",
        "RNNCell",
        "ScaledDotProductAttention",
    }
)
_INTEGER: Final = frozenset({"i8", "u8", "int8_t", "uint8_t"})


class OpenVino:
    """One compiled model with its request."""

    def __init__(self, model: Path, recipe: Recipe) -> None:
        if recipe.optimization is not Optimization.ALL:
            raise StageFailedError(
                "OpenVINO always optimizes; it does not run a file as written",
                fix="use onnxruntime for the reference arithmetic",
            )
        self._model, self._recipe = model, recipe
        self._compiled = self._compile({})
        self._request = self._compiled.create_infer_request()

    def _compile(self, more: Mapping[str, Any]) -> Any:
        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self._recipe.threads,
            "NUM_STREAMS": "1",  # calls come one after the other
            "PERFORMANCE_HINT": self._recipe.hint.value.upper(),
            "ENABLE_CPU_PINNING": False,
            # What is not integer runs in float32: the CPU plug-in would choose bfloat16 where it has it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            # convert_model folds what Core.read_model leaves in front of depthwise weights.
            converted = openvino.convert_model(str(self._model))
            return openvino.Core().compile_model(converted, "CPU", {**config, **more})
        except Exception as error:  # OpenVINO's exceptions share no base class but Exception
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise StageFailedError(
                f"OpenVINO does not load {self._model.name}: {lines[-1] if lines else type(error).__name__}",
                where=str(self._model),
            ) from error

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One inference."""
        self._request.infer(dict(inputs))
        outputs = range(len(self._compiled.outputs))
        return [np.array(self._request.get_output_tensor(i).data) for i in outputs]

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""
        return {
            port.get_any_name(): tuple(
                None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()
            )
            for port in self._compiled.inputs
        }

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name."""
        return {
            port.get_any_name(): np.dtype(port.get_element_type().to_dtype()).name
            for port in self._compiled.inputs
        }

    def executed(self) -> list[NodePrecision]:
        """Read from the graph that the plug-in executes."""
        return [precision_of(op) for op in self._compiled.get_runtime_model().get_ops()]

    def describe(self) -> Mapping[str, JSON]:
        """Version, device and the properties that the plug-in settled on."""
        names = (
            "INFERENCE_NUM_THREADS",
            "NUM_STREAMS",
            "PERFORMANCE_HINT",
            "INFERENCE_PRECISION_HINT",
            "ENABLE_CPU_PINNING",
        )
        return {
            "library": f"openvino {openvino.get_version()}",
            "device": "CPU",
            "clock_covers": "compute",
            **{name.lower(): str(self._compiled.get_property(name)) for name in names},
        }

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """From the plug-in's performance counters, in a compiled model of its own."""
        request = self._compile({"PERF_COUNT": True}).create_infer_request()
        seconds: dict[tuple[str, str], float] = {}
        request.infer(dict(inputs))
        for _ in range(runs):
            request.infer(dict(inputs))
            for info in request.profiling_info:
                key = (info.node_name, info.node_type)
                seconds[key] = seconds.get(key, 0.0) + info.real_time.total_seconds()
        return [OperatorTime(name=n, op=op, seconds=s / runs) for (n, op), s in seconds.items() if s]

    def close(self) -> None:
        """Drop the request and the model."""
        del self._request, self._compiled


def precision_of(op: Any) -> NodePrecision:
    """One operator of the executed graph, with the operators of the file that it stands for."""
    info = op.get_rt_info()

    def text(key: str) -> str:
        return str(info[key].value if hasattr(info[key], "value") else info[key]) if key in info else ""

    kind = text("layerType")
    return NodePrecision(
        name=op.get_friendly_name(),
        op=kind,
        integer=text("runtimePrecision") in _INTEGER,
        weighted=kind in _WEIGHTED,
        covers=tuple(name for name in text("originalLayersNames").split(",") if name),
        placement="CPU",
    )


def load(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> OpenVino:
    """Load ``model``; StageFailedError with the runtime's own reason."""
    return OpenVino(model, recipe)
