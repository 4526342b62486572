"""A checkpoint of hwopt run by torch: what the same network costs where it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hwopt import checkpoints
from hwopt.core.backend import NodePrecision, OperatorTime, Optimization, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array, tokens_of
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import ConfigError, StageFailedError

INPUT: Final = "input"
_WEIGHTED: Final = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
_GRAPH_WARM_UP: Final = 3  # runs on a side stream before a capture, as torch asks for


class Torch:
    """One network in evaluation mode on one device."""

    def __init__(self, model: Path, recipe: Recipe, *, device: str, compiled: bool) -> None:
        if recipe.optimization is not Optimization.ALL:
            raise StageFailedError("torch runs modules, not files as written", fix="use onnxruntime")
        if checkpoints.is_onnx(model):
            raise ConfigError(
                "torch runs checkpoints of hwopt, not ONNX files",
                where=str(model),
                fix="give the .safetensors that the ONNX file was exported from",
            )
        network = checkpoints.load(model, None)
        self._recipe, self._device, self._compiled = recipe, device, compiled
        self._module = network.module.eval().to(device)
        self._shape = network.recipe.sample_shape
        torch.set_num_threads(recipe.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
        self._call: Callable[[Tensor], Tensor] = self._module
        if compiled:
            self._call = torch.compile(self._module)
            # Compilation belongs to loading, not to the first inference.
            self.run({INPUT: np.zeros((1, *self._shape), self.dtypes()[INPUT])})
        self._graphs: dict[tuple[int, ...], tuple[Any, Tensor, Tensor]] = {}

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One inference; on a GPU with its copies, the compute as one CUDA graph a shape."""
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(inputs[INPUT]))
            y = self._call(x) if self._device == "cpu" else self._on_gpu(x)
        result: Array = y.cpu().numpy()
        return [result]

    def _on_gpu(self, x: Tensor) -> Tensor:
        """Untested: no machine with a GPU has run it yet (see docs/results/README.md)."""
        shape = tuple(x.shape)
        if shape not in self._graphs:
            held = x.to(self._device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_GRAPH_WARM_UP):
                    self._module(held)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._module(held)
            self._graphs[shape] = (graph, held, result)
        graph, held, result = self._graphs[shape]
        held.copy_(x)
        graph.replay()
        return result

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; the batch is free."""
        return {INPUT: (None, *self._shape)}

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name."""
        return {INPUT: "int64" if tokens_of(self._shape) else "float32"}

    def executed(self) -> list[NodePrecision]:
        """The modules with weights: all in float, a fake-quantized twin's too."""
        return [
            NodePrecision(
                name=name, op=type(module).__name__, integer=False, weighted=True, placement=self._device
            )
            for name, module in self._module.named_modules()
            if isinstance(module, _WEIGHTED)
        ]

    def describe(self) -> Mapping[str, JSON]:
        """Version, mode and threads."""
        mode = "compiled" if self._compiled else "eager"
        return {
            "library": f"torch {torch.__version__}",
            "device": self._device,
            "mode": mode if self._device == "cpu" else "CUDA graph",
            "threads": torch.get_num_threads(),
            "clock_covers": "compute" if self._device == "cpu" else "compute and copies",
        }

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """From torch's profiler: time in each kind of operator, without what it calls in turn."""
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CPU] if self._device == "cpu" else [activity.CPU, activity.CUDA]
        x = torch.from_numpy(np.ascontiguousarray(inputs[INPUT])).to(self._device)
        with torch.profiler.profile(activities=kinds) as profiler, torch.inference_mode():
            for _ in range(runs):
                self._call(x)  # without the CUDA graph, which hides its kernels
        field = "self_cpu_time_total" if self._device == "cpu" else "self_device_time_total"
        times = {event.key: getattr(event, field) / 1e6 / runs for event in profiler.key_averages()}
        return [
            OperatorTime(name=key, op=key.removeprefix("aten::"), seconds=seconds)
            for key, seconds in times.items()
            if seconds > 0
        ]

    def close(self) -> None:
        """Drop the network."""
        self._graphs.clear()
        del self._module, self._call


def load(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> Torch:
    """Eager on the CPU."""
    return Torch(model, recipe, device="cpu", compiled=False)


def load_compiled(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> Torch:
    """Through TorchInductor on the CPU; the first call of a new shape compiles."""
    return Torch(model, recipe, device="cpu", compiled=True)


def load_cuda(model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> Torch:
    """On the first GPU. Untested: see ``Torch._on_gpu``."""
    return Torch(model, recipe, device="cuda", compiled=False)
