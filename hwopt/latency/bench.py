"""Models timed against each other on this machine, under one recipe and with one sample."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from hwopt.core.backend import BackendSpec, Recipe, Runtime
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Interval
from hwopt.core.stage import StageContext, Timing
from hwopt.errors import StageFailedError
from hwopt.measuring.block import Call
from hwopt.measuring.rounds import compare, quick_ratios
from hwopt.plugins import load_reference, resolve

_SESSIONS: Final = 3
_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How and with what a model is timed here."""

    runtime: str  # name of the backend
    hardware: HardwareProfile
    sample: Array  # one call's input
    threads: int = 1
    seed: int = 0

    def load(self, path: Path) -> Runtime:
        """A session under the recipe that benchmarks use too."""
        backend: BackendSpec = resolve("backend", self.runtime)
        runtime: Runtime = load_reference(backend.load)(path, Recipe(threads=self.threads), self.hardware)
        return runtime

    def call(self, runtime: Runtime) -> Call:
        """One inference."""
        (name,) = runtime.inputs()
        feed = {name: self.sample}
        return lambda: runtime.run(feed)

    def ratios(self, reference: onnx.ModelProto, candidates: Sequence[onnx.ModelProto]) -> list[float]:
        """Time of each candidate over that of the reference, all loaded at once and interleaved."""
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            calls = []
            for index, model in enumerate([reference, *candidates]):
                path = Path(folder) / f"{index}.onnx"
                path.write_bytes(model.SerializeToString())
                runtime = self.load(path)
                stack.callback(runtime.close)
                calls.append(self.call(runtime))
            return quick_ratios(calls[0], calls[1:], seed=self.seed)

    def confirm(self, reference: onnx.ModelProto, model: onnx.ModelProto) -> Interval:
        """Latency of ``model`` over that of ``reference``, with an interval: pairs in fresh sessions."""
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            calls = []
            for name, proto in (("reference", reference), ("model", model)):
                path = Path(folder) / f"{name}.onnx"
                path.write_bytes(proto.SerializeToString())
                runtimes = [self.load(path) for _ in range(_SESSIONS)]
                for runtime in runtimes:
                    stack.callback(runtime.close)
                calls.append([self.call(runtime) for runtime in runtimes])
            # Baseline over candidate is the speed-up; the other way round it is the share of the time.
            result = compare(calls[1], calls[0], seed=self.seed, half_width=0.01, budget_seconds=_SECONDS)
        return result.interval()


def bench_of(ctx: StageContext, timing: Timing) -> Bench:
    """The bench of a stage: the device of the target, real samples, the batch of the settings.

    Raises:
        StageFailedError: no device, or fewer samples than the batch.
    """
    if ctx.hardware is None:
        raise StageFailedError("models are timed for a device, and none is named", fix="name a target")
    batch = timing.batch or 1
    sample = ctx.data().x_train[:batch]
    if len(sample) < batch:
        raise StageFailedError(
            f"the batch is {batch}, and the training split has {len(sample)} samples", fix="lower the batch"
        )
    return Bench(
        runtime=timing.runtime or "onnxruntime",
        hardware=ctx.hardware,
        sample=sample,
        threads=timing.threads or 1,
        seed=ctx.seed,
    )
