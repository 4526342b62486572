"""A model loaded by ONNX Runtime, and what it really executes."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from hwopt.core.backend import NodePrecision, OperatorTime, Optimization, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import StageFailedError

# Operators of the optimized graph. A convolution or matrix product in neither list would be missed by
# `integer_share`, so the contract suite checks a model of every kind against these names.
_INTEGER_WEIGHTED: Final = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
        "DynamicQuantizeLSTM",
    }
)
_FLOAT_WEIGHTED: Final = frozenset(
    {
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "NhwcConv",
        "ConvTranspose",
        "ConvTransposeWithDynamicPads",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "TransposeMatMul",
        "Attention",
        "MultiHeadAttention",
        "LSTM",
        "GRU",
        "RNN",
        "MatMulNBits",
        "Einsum",
    }
)
_INTEGER_OTHER: Final = frozenset(
    {
        "QLinearAdd",
        "QLinearMul",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearSoftmax",
    }
)
_LEVELS: Final = {
    Optimization.ALL: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    Optimization.NONE: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ERRORS_ONLY: Final = 3
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
_NUMPY: Final = {"float": "float32", "double": "float64"}  # ONNX Runtime speaks of C++ types


def session_options(recipe: Recipe, *, signed: bool = False) -> Any:
    """ONNX Runtime's options for a recipe; the same for accuracy and for latency.

    With signed activations it is told to keep them: on x86 it would make them unsigned first, and then leave
    convolutions in front of additions in float.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[recipe.optimization]
    options.intra_op_num_threads = recipe.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    if signed:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if recipe.spinning else "0")
    return options


class OnnxRuntime:
    """One session, on the CPU or on one GPU."""

    def __init__(self, model: Path, recipe: Recipe, provider: str = CPU) -> None:
        self._model, self._recipe, self._provider = model, recipe, provider
        self._signed = has_signed_activations(model)
        self._session = self._open(session_options(recipe, signed=self._signed))
        used = self._session.get_providers()[0]
        if used != provider:  # ONNX Runtime falls back to the CPU and goes on
            raise StageFailedError(
                f"ONNX Runtime runs {model.name} with {used}, and {provider} was asked for",
                fix="onnxruntime-gpu needs the CUDA and cuDNN libraries of its release; hwopt doctor",
            )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One inference."""
        outputs: list[Array] = self._session.run(self._outputs, dict(inputs))
        return outputs

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""
        return {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in self._session.get_inputs()
        }

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name."""
        names = {
            value.name: value.type.removeprefix("tensor(").rstrip(")") for value in self._session.get_inputs()
        }
        return {name: _NUMPY.get(dtype, dtype) for name, dtype in names.items()}

    def executed(self) -> list[NodePrecision]:
        """Read from the graph that ONNX Runtime writes after its own optimization."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = session_options(self._recipe, signed=self._signed)
            options.optimized_model_filepath = str(path)
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            session = self._open(options)
            graph = onnx.load(path).graph
        placed = {
            node.name: str(part.ep_name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        }
        everywhere = set(placed.values())
        (only,) = everywhere if len(everywhere) == 1 else ("",)  # a merged node has a name of its own
        return [precision_of(node, placed.get(node.name, only)) for node in graph.node]

    def _open(self, options: Any) -> Any:
        return _session(self._model, options, self._provider)

    def describe(self) -> Mapping[str, JSON]:
        """Version, provider and session options."""
        return {
            "library": f"onnxruntime {onnxruntime.__version__}",
            "provider": str(self._session.get_providers()[0]),
            "clock_covers": "compute" if self._provider == CPU else "compute and copies",
            "intra_op_num_threads": self._recipe.threads,
            "allow_spinning": self._recipe.spinning,
            "graph_optimization_level": self._recipe.optimization.value,
            "keeps_signed_activations": self._signed,
        }

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """From ONNX Runtime's own profiler, in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            options = session_options(self._recipe, signed=self._signed)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(options)
            for _ in range(runs + 1):  # the first fills caches
                session.run(self._outputs, dict(inputs))
            events: list[Any] = json.loads(Path(session.end_profiling()).read_text())
        seconds: dict[tuple[str, str], list[float]] = {}
        for event in events:
            details = event.get("args", {})
            if event.get("cat") == "Node" and "op_name" in details and event["name"].endswith("_kernel_time"):
                key = (event["name"].removesuffix("_kernel_time"), details["op_name"])
                seconds.setdefault(key, []).append(event["dur"] / 1e6)
        return [
            OperatorTime(name=name, op=op, seconds=statistics.median(times[1:] or times), least=min(times))
            for (name, op), times in seconds.items()
        ]

    def close(self) -> None:
        """Drop the session."""
        del self._session


def has_signed_activations(model: Path) -> bool:
    """Whether a file quantizes activations to int8; what is no ONNX file, loading will say."""
    try:
        graph = onnx.load(model, load_external_data=False).graph
    except DecodeError:
        return False
    signed = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.INT8}
    return any(
        n.op_type == "QuantizeLinear" and len(n.input) > 2 and n.input[2] in signed for n in graph.node
    )


def precision_of(node: onnx.NodeProto, placement: str = "") -> NodePrecision:
    """Whether a node of an optimized graph computes in integer, and whether it carries weights."""
    integer = node.op_type in _INTEGER_WEIGHTED | _INTEGER_OTHER
    weighted = node.op_type in _INTEGER_WEIGHTED | _FLOAT_WEIGHTED
    return NodePrecision(
        name=node.name,
        op=node.op_type,
        integer=integer,
        weighted=weighted,
        covers=tuple(node.input),
        placement=placement.removesuffix("ExecutionProvider"),
    )


def _session(model: Path, options: Any, provider: str) -> Any:
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=_providers(provider))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise StageFailedError(
            f"ONNX Runtime does not load {model.name}: {str(error).splitlines()[0]}", where=str(model)
        ) from error


def _providers(provider: str) -> list[Any]:
    """With TF32 off: float32 is float32; what is not, the file says."""
    return [CPU] if provider == CPU else [(provider, {"use_tf32": "0"}), CPU]


def load(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> OnnxRuntime:
    """Load ``model``; StageFailedError with the runtime's own reason."""
    return OnnxRuntime(model, recipe)


def load_cuda(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> OnnxRuntime:
    """Load ``model`` on the first NVIDIA GPU; StageFailedError where ONNX Runtime would fall back to the CPU.

    Untested: no machine with onnxruntime-gpu has run it yet (see docs/results/README.md).
    """
    loaded = OnnxRuntime(model, recipe, CUDA)
    weighted = [node for node in loaded.executed() if node.weighted]
    elsewhere = [node.name for node in weighted if node.placement == "CPU"]
    if elsewhere:
        raise StageFailedError(
            f"ONNX Runtime leaves {len(elsewhere)} of {len(weighted)} weighted operators of {model.name} on the CPU: "
            f"{', '.join(elsewhere[:4])}",
            fix="quantize for this device, or measure in TensorRT",
        )
    return loaded
