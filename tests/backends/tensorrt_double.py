"""A stand-in for ``tensorrt`` and ``cuda.bindings.runtime``: their names, over ONNX Runtime and host memory.

It knows no name that TensorRT 10.12 to 11.4 has not, so that a misspelt one fails; what a GPU would do with the
calls, it cannot show. ``version`` 10 has STRONGLY_TYPED and the inspector's old schema, 11 has neither.
"""

from __future__ import annotations

import ctypes
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime


class Double:
    """Both modules, and what was asked of them."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.capturing: list[Any] | None = None
        self.capture_works = True
        self.cache_fits = True
        self.graphs = 0  # instantiated and not destroyed
        self.trt = self._tensorrt()
        self.cudart = self._cuda()

    def _tensorrt(self) -> ModuleType:
        trt = ModuleType("tensorrt")
        flags = {"STRONGLY_TYPED": 0}  # 11 still has it, and ignores it
        members: dict[str, Any] = {
            "__version__": f"{self.version}.0.0",
            "Logger": _Logger,
            "BuilderFlag": SimpleNamespace(TF32=7),
            "Builder": lambda logger: _Builder(self),
            "OnnxParser": _Parser,
            "Runtime": lambda logger: SimpleNamespace(
                deserialize_cuda_engine=lambda plan: _Engine(self, plan)
            ),
            "IProfiler": _Profiler,
            "NetworkDefinitionCreationFlag": SimpleNamespace(**flags),
            "ProfilingVerbosity": SimpleNamespace(LAYER_NAMES_ONLY=0, NONE=1, DETAILED=2),
            "LayerInformationFormat": SimpleNamespace(ONELINE=0, JSON=1),
            "TensorIOMode": SimpleNamespace(NONE=0, INPUT=1, OUTPUT=2),
            "nptype": lambda dtype: np.dtype(dtype),
        }
        for name, value in members.items():
            setattr(trt, name, value)
        return trt

    def _cuda(self) -> ModuleType:
        cudart = ModuleType("cuda.bindings.runtime")

        def malloc(size: int) -> tuple[int, int]:
            block = (ctypes.c_char * size)()
            address = ctypes.addressof(block)
            self.memory[address] = block
            return 0, address

        def free(address: int) -> tuple[int]:
            del self.memory[address]
            return (0,)

        def copy(target: int, source: int, size: int, kind: int, stream: Any) -> tuple[int]:
            assert self.capturing is None, "a copy of host memory was captured"
            assert (target if kind == 1 else source) in self.memory
            ctypes.memmove(target, source, size)
            return (0,)

        def begin(stream: Any, mode: int) -> tuple[int]:
            self.capturing = []
            return (0,)

        def end(stream: Any) -> tuple[int, Any]:
            graph, self.capturing = self.capturing, None
            return (0, graph) if self.capture_works else (900, None)

        def launch(graph: list[Any], stream: Any) -> tuple[int]:
            self.calls.append("launch")
            for work in graph:
                work()
            return (0,)

        def instantiated(graph: Any, flags: int) -> tuple[int, Any]:
            self.graphs += 1
            return 0, graph

        def destroyed(graph: Any) -> tuple[int]:
            self.graphs -= 1
            return (0,)

        properties = SimpleNamespace(major=8, minor=9, name=b"NVIDIA L4")
        members: dict[str, Any] = {
            "cudaError_t": SimpleNamespace(cudaSuccess=0),
            "cudaMemcpyKind": SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
            "cudaStreamCaptureMode": SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            "cudaGetErrorString": lambda status: (0, b"out of memory"),
            "cudaGetDeviceProperties": lambda index: (0, properties),
            "cudaStreamCreate": lambda: (0, object()),
            "cudaStreamDestroy": lambda stream: (0,),
            "cudaStreamSynchronize": lambda stream: (0,),
            "cudaMalloc": malloc,
            "cudaFree": free,
            "cudaMemcpyAsync": copy,
            "cudaStreamBeginCapture": begin,
            "cudaStreamEndCapture": end,
            "cudaGraphInstantiate": instantiated,
            "cudaGraphDestroy": lambda graph: (0,),
            "cudaGraphExecDestroy": destroyed,
            "cudaGraphLaunch": launch,
        }
        for name, value in members.items():
            setattr(cudart, name, value)
        return cudart


class _Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        pass


class _Profiler:
    pass


class _Network:
    def __init__(self) -> None:
        self.model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._values())

    def get_input(self, index: int) -> Any:
        value = self._values()[index]
        dims = value.type.tensor_type.shape.dim
        return SimpleNamespace(
            name=value.name, shape=tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
        )

    def _values(self) -> list[Any]:
        stored = {i.name for i in self.model.graph.initializer}
        return [v for v in self.model.graph.input if v.name not in stored]


class _Parser:
    def __init__(self, network: _Network, logger: Any) -> None:
        self.network, self.errors = network, list[Any]()

    def parse(self, data: bytes) -> bool:
        try:
            self.network.model = onnx.load_from_string(data)
            onnx.checker.check_model(self.network.model)
        except Exception:
            self.errors.append(("MODEL_DESERIALIZE_FAILED", "", "", "Failed to parse the ONNX model."))
            return False
        for node in self.network.model.graph.node:
            if node.op_type == "Det":
                self.errors.append(("UNSUPPORTED_NODE", "Det", node.name, "false"))
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        code, operator, name, said = self.errors[index]
        return SimpleNamespace(
            code=lambda: SimpleNamespace(name=code),
            node_operator=lambda: operator,
            node_name=lambda: name,
            desc=lambda: said,
        )


class _Config:
    def __init__(self, double: Double) -> None:
        self.double = double
        self.profiling_verbosity = 0
        self.profiles: list[Any] = []
        self.cache: bytes | None = None

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: data or b"timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return self.double.cache_fits or cache.serialize() == b"timed"

    def clear_flag(self, flag: int) -> None:
        assert flag == 7


class _Shapes:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        self.shapes[name] = (least, best, most)


class _Builder:
    def __init__(self, double: Double) -> None:
        self.double = double

    def create_network(self, flags: int) -> _Network:
        assert flags == 1
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config(self.double)

    def create_optimization_profile(self) -> _Shapes:
        return _Shapes()

    def build_serialized_network(self, network: _Network, config: _Config) -> Any:
        self.double.calls.append("build")
        (profile,) = config.profiles
        data = network.model.SerializeToString()
        return SimpleNamespace(nbytes=len(data), model=data, shapes=profile.shapes)


class _Engine:
    device_memory_size_v2 = 4096

    def __init__(self, double: Double, plan: Any) -> None:
        self.double, self.plan = double, plan
        self.session = onnxruntime.InferenceSession(plan.model, providers=["CPUExecutionProvider"])
        self.ins, self.outs = self.session.get_inputs(), self.session.get_outputs()

    @property
    def num_io_tensors(self) -> int:
        return len(self.ins) + len(self.outs)

    def get_tensor_name(self, index: int) -> str:
        return str([*self.ins, *self.outs][index].name)

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in {i.name for i in self.ins} else 2

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(v for v in [*self.ins, *self.outs] if v.name == name)
        return tuple(size if isinstance(size, int) else -1 for size in value.shape)

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda kind: self.report())

    def report(self) -> str:
        graph = onnx.load_from_string(self.plan.model).graph
        makers = {output: node for node in graph.node for output in node.output}
        layers = []
        for node in graph.node:
            if node.op_type in {"Conv", "Gemm", "MatMul"}:
                maker = makers.get(node.input[0])
                kind = "Int8" if maker is not None and maker.op_type == "DequantizeLinear" else "Float"
                tensor = (
                    {"Format/Datatype": f"{kind} NC/32HW32"}
                    if self.double.version == 10
                    else {"Format": "NC/32HW32", "DataType": kind}
                )
                layers.append({"Name": node.name, "LayerType": "CaskConvolution", "Inputs": [tensor]})
        return json.dumps({"Layers": layers})


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.plan.shapes[name]
        if len(shape) != len(least) or not all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0]
        return tuple(batch if size < 0 else size for size in self.engine.get_tensor_shape(name))

    def _array(self, address: int, shape: tuple[int, ...]) -> Any:
        assert address in self.engine.double.memory, "the address was freed"
        block = (ctypes.c_float * int(np.prod(shape))).from_address(address)
        return np.frombuffer(block, np.float32).reshape(shape)

    def execute_async_v3(self, stream: Any) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)  # a graph keeps those of its capture

        def work() -> None:
            feeds = {name: self._array(addresses[name], shape).copy() for name, shape in shapes.items()}
            for value, result in zip(self.engine.outs, self.engine.session.run(None, feeds), strict=True):
                self._array(addresses[value.name], result.shape)[...] = result
            if self.profiler is not None:
                self.profiler.report_layer_time("conv", 0.5)

        double = self.engine.double
        if double.capturing is not None:
            double.capturing.append(work)
        else:
            double.calls.append("enqueue")
            work()
        return True
