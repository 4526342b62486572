"""A model compiled and run by TensorRT.

Untested: no machine with TensorRT has run this file yet (see docs/results/README.md). Written against the
Python API of TensorRT 10.12 to 11.4: strongly typed networks, named tensors, ``execute_async_v3``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorrt
from cuda.bindings import runtime as cudart

from hwopt.core.backend import NodePrecision, OperatorTime, Recipe
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import StageFailedError

_MAX_BATCH: Final = 64
_WEIGHTED_LAYERS: Final = ("convolution", "conv", "gemm", "matmul", "matrixmultiply", "fullyconnected")


def cuda(result: tuple[Any, ...]) -> Any:
    """Values of a CUDA call; StageFailedError where it reports an error."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        raise StageFailedError(f"CUDA: {cudart.cudaGetErrorString(status)[1]!r}")
    return values[0] if len(values) == 1 else values


def build(model: Path) -> Any:
    """Serialized engine of an ONNX file with explicit Q/DQ; precision comes from the file alone."""
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    flags = tensorrt.NetworkDefinitionCreationFlag
    # Deprecated and implied in TensorRT 11, needed in 10.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise StageFailedError(f"TensorRT does not take {model.name}: {'; '.join(reasons)}", where=str(model))
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # the inspector needs it
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        least, most = (tuple(n if size < 0 else size for size in tensor.shape) for n in (1, _MAX_BATCH))
        profile.set_shape(tensor.name, least, least, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise StageFailedError(f"TensorRT could not build an engine for {model.name}", where=str(model))
    return engine


class TensorRt:
    """One engine with its execution context and stream."""

    def __init__(self, model: Path) -> None:
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(build(model))
        self._context = self._engine.create_execution_context()
        self._stream = cuda(cudart.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _buffer(self, name: str, size: int) -> int:
        address, held = self._buffers.get(name, (0, 0))
        if held < size:
            if address:
                cuda(cudart.cudaFree(address))
            address = cuda(cudart.cudaMalloc(size))
            self._buffers[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """Copy in, execute, copy out, synchronize."""
        kinds = cudart.cudaMemcpyKind
        for name, value in inputs.items():
            array = np.ascontiguousarray(value)
            self._context.set_input_shape(name, array.shape)
            address = self._buffer(name, array.nbytes)
            cuda(
                cudart.cudaMemcpyAsync(
                    address, array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice, self._stream
                )
            )
        outputs: dict[str, Array] = {}
        for name in self._names(tensorrt.TensorIOMode.OUTPUT):
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = np.empty(shape, tensorrt.nptype(self._engine.get_tensor_dtype(name)))
            self._buffer(name, outputs[name].nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise StageFailedError("TensorRT refused to execute the engine")
        for name, array in outputs.items():
            cuda(
                cudart.cudaMemcpyAsync(
                    array.ctypes.data,
                    self._buffers[name][0],
                    array.nbytes,
                    kinds.cudaMemcpyDeviceToHost,
                    self._stream,
                )
            )
        cuda(cudart.cudaStreamSynchronize(self._stream))
        return list(outputs.values())

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""
        return {
            name: tuple(None if size < 0 else size for size in self._engine.get_tensor_shape(name))
            for name in self._names(tensorrt.TensorIOMode.INPUT)
        }

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name."""
        return {
            name: np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))).name
            for name in self._names(tensorrt.TensorIOMode.INPUT)
        }

    def executed(self) -> list[NodePrecision]:
        """Read from the engine inspector."""
        inspector = self._engine.create_engine_inspector()
        report = json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
        return [precision_of(layer) for layer in report["Layers"]]

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """Nothing yet: layer times need an engine built with a profiler."""
        return []

    def close(self) -> None:
        """Free device memory and the stream."""
        for address, _ in self._buffers.values():
            cuda(cudart.cudaFree(address))
        self._buffers.clear()
        cuda(cudart.cudaStreamDestroy(self._stream))


def precision_of(layer: Mapping[str, Any]) -> NodePrecision:
    """One layer of the inspector's report; both schemata (``Format/Datatype`` and its split) are read."""
    inputs = layer.get("Inputs", [])
    text = " ".join(str(t.get("Format/Datatype", t.get("Datatype", t.get("DataType", "")))) for t in inputs)
    kind = str(layer.get("ParameterType", layer.get("LayerType", ""))).lower()
    return NodePrecision(
        name=str(layer.get("Name", "")),
        op=kind,
        integer="int8" in text.lower(),
        weighted=any(word in kind for word in _WEIGHTED_LAYERS),
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
    return TensorRt(model)
