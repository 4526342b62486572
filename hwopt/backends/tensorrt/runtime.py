"""A model run by TensorRT: named tensors, one CUDA graph a shape, and what the engine inspector says.

Untested: no machine with TensorRT has run this file yet (see docs/results/README.md). Written against the
Python API of TensorRT 10.12 to 11.4, and tried against a double that knows its names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorrt
from cuda.bindings import runtime as cudart

from hwopt.backends.tensorrt.engine import Built, build
from hwopt.core.backend import NodePrecision, OperatorTime, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import StageFailedError

_WEIGHTED_LAYERS: Final = ("convolution", "conv", "gemm", "matmul", "matrixmultiply", "fullyconnected")


_INT8: Final = re.compile(r"(?<!u)int8")


def cuda(result: tuple[Any, ...]) -> Any:
    """Values of a CUDA call; StageFailedError where it reports an error."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        said = cudart.cudaGetErrorString(status)[1]
        raise StageFailedError(f"CUDA: {said.decode() if isinstance(said, bytes) else said}")
    return values[0] if len(values) == 1 else values


class _LayerTimes(tensorrt.IProfiler):
    """Sums of each layer's milliseconds."""

    def __init__(self) -> None:
        tensorrt.IProfiler.__init__(self)
        self.milliseconds: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT after every execution."""
        self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms


_Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of all inputs, by name


@dataclass(slots=True, kw_only=True)
class _Engine:
    """An engine tuned for one batch, with its context and device memory."""

    built: Built
    engine: Any
    context: Any
    buffers: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> address, bytes
    graphs: dict[_Shapes, Any] = field(default_factory=dict)  # None where it cannot be captured


class TensorRt:
    """One model, with an engine for every batch size that it is asked for."""

    def __init__(self, model: Path, gpu: str) -> None:
        self._model, self._gpu = model, gpu
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._stream = cuda(cudart.cudaStreamCreate())  # execute_async_v3 wants one of its own
        self._engines: dict[int, _Engine] = {}
        self._current = self._engine(1)

    def _engine(self, batch: int) -> _Engine:
        if batch not in self._engines:
            built = build(self._model, batch, self._gpu)
            engine = self._runtime.deserialize_cuda_engine(built.plan)
            if engine is None:
                raise StageFailedError(f"TensorRT does not load the engine it built for {self._model.name}")
            context = engine.create_execution_context()
            if context is None:
                raise StageFailedError(
                    f"the GPU has no room to run {self._model.name}", fix="a smaller batch, or a larger GPU"
                )
            self._engines[batch] = _Engine(built=built, engine=engine, context=context)
        return self._engines[batch]

    def _names(self, mode: Any) -> list[str]:
        engine = self._current.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == mode]

    def _buffer(self, name: str, size: int) -> int:
        held = self._current
        address, have = held.buffers.get(name, (0, 0))
        if have < size:
            if address:
                cuda(cudart.cudaFree(address))
            address = cuda(cudart.cudaMalloc(size))
            held.buffers[name] = (address, size)
            self._drop_graphs(held)  # they have the old address in them
        held.context.set_tensor_address(name, address)
        return address

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """Copy in, execute, copy out, synchronize."""
        self._check(inputs)
        free = [name for name, shape in self.inputs().items() if shape and shape[0] is None]
        self._current = self._engine(max((len(inputs[name]) for name in free), default=1))
        outputs = self._prepared(inputs)
        for name, value in inputs.items():
            self._copy(name, np.ascontiguousarray(value), to_device=True)
        self._execute(tuple((name, np.shape(inputs[name])) for name in sorted(inputs)))
        for name, array in outputs.items():
            self._copy(name, array, to_device=False)
        cuda(cudart.cudaStreamSynchronize(self._stream))
        return list(outputs.values())

    def _check(self, inputs: Mapping[str, Array]) -> None:
        """Device memory is filled as it comes: another type or shape would be read as numbers all the same."""
        dtypes = self.dtypes()
        if set(inputs) != set(dtypes):
            raise StageFailedError(f"the model takes {', '.join(dtypes)}, and {', '.join(inputs)} was given")
        for name, value in inputs.items():
            if value.dtype.name != dtypes[name]:
                raise StageFailedError(f"{name} is {dtypes[name]}, and {value.dtype.name} was given")

    def _prepared(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Device memory for all tensors; the host arrays that outputs go to."""
        context = self._current.context
        for name, value in inputs.items():
            if not context.set_input_shape(name, np.shape(value)):
                raise StageFailedError(
                    f"the engine does not take {list(np.shape(value))} for {name!r}",
                    fix="give the shape that the model was exported with",
                )
            self._buffer(name, value.nbytes)
        outputs: dict[str, Array] = {}
        for name in self._names(tensorrt.TensorIOMode.OUTPUT):
            shape = tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise StageFailedError(f"the shape of {name!r} depends on the data, which is not supported")
            outputs[name] = np.empty(shape, self._dtype(name))
            self._buffer(name, outputs[name].nbytes)
        return outputs

    def _copy(self, name: str, array: Array, *, to_device: bool) -> None:
        kinds, device, host = cudart.cudaMemcpyKind, self._current.buffers[name][0], array.ctypes.data
        source, target = (host, device) if to_device else (device, host)
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        cuda(cudart.cudaMemcpyAsync(target, source, array.nbytes, kind, self._stream))

    def _execute(self, shapes: _Shapes) -> None:
        """By CUDA graph from the second time on, so that launches cost nothing on the host."""
        graphs = self._current.graphs
        if graphs.get(shapes) is not None:
            cuda(cudart.cudaGraphLaunch(graphs[shapes], self._stream))
            return
        self._enqueue()  # also the warm-up that a capture needs
        if shapes not in graphs:
            graphs[shapes] = self._captured()

    def _enqueue(self) -> None:
        if not self._current.context.execute_async_v3(self._stream):
            raise StageFailedError("TensorRT refused to execute the engine")

    def _captured(self) -> Any:
        """None where the engine cannot be captured; ``describe`` says so."""
        cuda(cudart.cudaStreamSynchronize(self._stream))
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda(cudart.cudaStreamBeginCapture(self._stream, mode))
        accepted = self._current.context.execute_async_v3(self._stream)
        status, graph = cudart.cudaStreamEndCapture(self._stream)
        captured = status == cudart.cudaError_t.cudaSuccess
        if not accepted or not captured:
            if captured:
                cuda(cudart.cudaGraphDestroy(graph))
            return None
        made = cuda(cudart.cudaGraphInstantiate(graph, 0))
        cuda(cudart.cudaGraphDestroy(graph))
        return made

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""
        return {
            name: tuple(None if size < 0 else size for size in self._current.engine.get_tensor_shape(name))
            for name in self._names(tensorrt.TensorIOMode.INPUT)
        }

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name."""
        return {name: self._dtype(name).name for name in self._names(tensorrt.TensorIOMode.INPUT)}

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._current.engine.get_tensor_dtype(name)
        try:
            found: np.dtype[Any] = np.dtype(tensorrt.nptype(kind))
        except TypeError:
            raise StageFailedError(
                f"{name!r} is {kind}, which NumPy has not", fix="give the model float inputs and outputs"
            ) from None
        return found

    def executed(self) -> list[NodePrecision]:
        """Read from the engine inspector."""
        inspector = self._current.engine.create_engine_inspector()
        report = json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
        return [precision_of(layer) for layer in report["Layers"] if isinstance(layer, dict)]

    def describe(self) -> Mapping[str, JSON]:
        """Version, engine, memory, and whether it runs as a CUDA graph."""
        held = self._current
        captured = [graph is not None for graph in held.graphs.values()]
        return {
            "library": f"tensorrt {tensorrt.__version__}",
            "device": self._gpu,
            "tf32": False,
            "clock_covers": "compute and copies",
            "cuda_graph": all(captured) if captured else None,
            "tuned_for_batch": held.built.batch,
            "engine_bytes": held.built.size,
            "build_seconds": held.built.seconds,
            "timing_cache_bytes": held.built.timing_cache_bytes,
            "device_memory_bytes": int(getattr(held.engine, "device_memory_size_v2", 0)) or None,
        }

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """From TensorRT's layer profiler, without the CUDA graph."""
        self.run(inputs)
        times = _LayerTimes()
        self._current.context.profiler = times
        for _ in range(runs):
            self._enqueue()
            cuda(cudart.cudaStreamSynchronize(self._stream))
        self._current.context.profiler = None
        kinds = {node.name: node.op for node in self.executed()}
        return [
            OperatorTime(name=name, op=kinds.get(name, name), seconds=ms / 1e3 / runs)
            for name, ms in times.milliseconds.items()
        ]

    def close(self) -> None:
        """Free device memory, graphs and the stream."""
        for held in self._engines.values():
            self._drop_graphs(held)
            for address, _ in held.buffers.values():
                cuda(cudart.cudaFree(address))
        self._engines.clear()
        del self._current  # the last hold on engine and context, and so on the weights' memory
        cuda(cudart.cudaStreamDestroy(self._stream))

    def _drop_graphs(self, held: _Engine) -> None:
        for graph in held.graphs.values():
            if graph is not None:
                cuda(cudart.cudaGraphExecDestroy(graph))
        held.graphs.clear()


def precision_of(layer: Mapping[str, Any]) -> NodePrecision:
    """One layer of the inspector's report; the names of both schemata are read.

    TensorRT 10 writes ``Format/Datatype`` of each input as one text, 11 splits format and type.
    """
    inputs = layer.get("Inputs", [])
    keys = ("Format/Datatype", "Datatype", "DataType", "Data Type")
    text = " ".join(str(next((t[key] for key in keys if key in t), "")) for t in inputs)
    kind = str(layer.get("ParameterType", layer.get("LayerType", ""))).lower()
    return NodePrecision(
        name=str(layer.get("Name", "")),
        op=kind,
        integer=_INT8.search(text.lower()) is not None,
        weighted=any(word in kind for word in _WEIGHTED_LAYERS),
        placement="GPU",
    )


def load(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> TensorRt:
    """Build and load; threads and spinning do not apply to a GPU.

    Raises:
        StageFailedError: the GPU here is not of the generation that the profile describes.
    """
    properties = cuda(cudart.cudaGetDeviceProperties(0))
    here = f"cc{properties.major}.{properties.minor}"
    if hardware.isa and here not in hardware.isa:
        raise StageFailedError(
            f"the GPU here is {here}, {hardware.name} is {', '.join(hardware.isa)}",
            fix="name the GPU that is here as the target",
        )
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return TensorRt(model, f"{name.strip()}, {here}")
