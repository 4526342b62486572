"""Models timed against each other in fresh processes: everything that is reported as measured comes from here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from hwopt.core.backend import NodePrecision, OperatorTime, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Interval
from hwopt.errors import HwoptError
from hwopt.latency.reference import VERSION as REFERENCE_VERSION
from hwopt.latency.workers import Process
from hwopt.measuring.comparison import Comparison
from hwopt.measuring.gpu import GpuState, gpu_state
from hwopt.measuring.percentiles import LEAST, SAMPLES, SECONDS, percentiles
from hwopt.measuring.preflight import Preflight, cpu_ticks, preflight, steal_since
from hwopt.measuring.rounds import Rounds, measure

SESSIONS: Final = 3  # fresh loads of each side in each process
_PROFILED: Final = 50  # inferences whose operators are timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model under one recipe, with the inputs it is called with."""

    model: Path
    runtime: str  # name of the backend
    hardware: HardwareProfile
    feed: Mapping[str, Array]
    recipe: Recipe = field(default_factory=Recipe)
    inferences: int = 1  # that one call makes: a difference of known size is planted with it

    def to_json(self, feed: Path) -> dict[str, JSON]:
        """For the process that loads it."""
        return {
            "model": str(self.model.resolve()),
            "runtime": self.runtime,
            "hardware": self.hardware.to_json(),
            "recipe": self.recipe.to_json(),
            "feed": str(feed),
            "inputs": list[JSON](self.feed),
            "inferences": self.inferences,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long and how exactly."""

    seed: int = 0
    half_width: float = 0.01
    budget_seconds: float = 6.0
    processes: int = 2
    sessions: int = SESSIONS
    gap_seconds: float | None = None  # paced: a pause before every call
    margin: float | None = None  # stop once it is decided whether a side is slower by more than this
    reference: bool = True  # time the reference workload beside the models
    samples: int = SAMPLES  # single calls, for percentiles; 0 for none
    sample_seconds: float = SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of one set of rounds."""

    rounds: Rounds
    times: tuple[tuple[tuple[float, ...], ...], ...]  # seconds of single calls, by side and session
    steady: tuple[bool, ...]  # by side
    preflight: Preflight
    steal: float | None  # share of CPU time that the hypervisor took away meanwhile
    sides: int
    gpu: tuple[GpuState, ...] = ()  # before and after, where one did the work

    def compare(self, candidate: int, baseline: int = 0) -> Comparison:
        """Two sides, round by round."""
        return self.rounds.compare(candidate, baseline)

    def latency_ms(self, side: int) -> dict[str, float | int | None]:
        """Percentiles in milliseconds."""
        found = percentiles(self.times[side])
        return {k: v if k == "count" or v is None else v * 1e3 for k, v in found.items()}

    def fastest(self, sides: Sequence[int]) -> tuple[int, dict[int, JSON]]:
        """Of some sides the fastest, and the speed of each over it.

        A later one replaces an earlier one only where its whole interval says faster.
        """
        best = sides[0]
        for side in sides[1:]:
            if self.compare(side, best).interval().low > 1:
                best = side
        alone = Interval(1.0, 1.0, 1.0)
        ratios = {s: alone if s == best else self.compare(s, best).interval() for s in sides}
        return best, {side: ratio.to_json() for side, ratio in ratios.items()}

    def reference(self, side: int) -> dict[str, JSON] | None:
        """The reference workload's time, and the model's as a multiple of it; None where it was left out."""
        if self.sides == len(self.rounds.blocks[0]):
            return None
        multiple = self.rounds.compare(self.sides, side).interval()  # side over reference
        return {
            "version": REFERENCE_VERSION,
            "milliseconds": self.rounds.seconds(self.sides) * 1e3,
            "multiple": multiple.to_json(),
        }


def measure_all(
    candidates: Sequence[Candidate], effort: Effort, compared: Sequence[tuple[int, int]] | None = None
) -> Measured:
    """Randomized complete rounds of all candidates.

    Args:
        compared: (candidate, baseline): the intervals to narrow; every one with the first if left out.
    Raises:
        StageFailedError: a runtime refused a model, crashed or hung.
    """
    looked, ticks = preflight(), cpu_ticks()
    gpu = [_gpu(candidates, ())]
    pairs = [(side, 0) for side in range(1, len(candidates))] if compared is None else list(compared)
    if not pairs and effort.reference:
        pairs = [(len(candidates), 0)]  # a model alone: its latency in multiples of the reference workload
    with loaded(candidates, effort) as (processes, steady):
        rounds = measure(
            processes,
            sides=len(candidates) + effort.reference,
            sessions=effort.sessions,
            seed=effort.seed,
            half_width=effort.half_width,
            budget_seconds=effort.budget_seconds,
            compared=pairs,
            margin=effort.margin,
        )
        times = _sampled(processes, len(candidates), effort)
        gpu.append(
            _gpu(candidates, [process.pid for process in processes])
        )  # before the processes end, and the clocks fall
    return Measured(
        gpu=tuple(state for state in gpu if state is not None),
        rounds=rounds,
        times=times,
        steady=tuple(steady),
        preflight=looked,
        steal=steal_since(ticks),
        sides=len(candidates),
    )


def _gpu(candidates: Sequence[Candidate], own: Sequence[int]) -> GpuState | None:
    """Read outside the rounds: asking disturbs a GPU that works (NVIDIA/TensorRT issue 3090)."""
    if all(candidate.hardware.kind is not DeviceKind.GPU for candidate in candidates):
        return None
    state = gpu_state(own)
    return None if isinstance(state, str) else state


@contextmanager
def loaded(candidates: Sequence[Candidate], effort: Effort) -> Iterator[tuple[list[Process], list[bool]]]:
    """Fresh processes with fresh sessions of every candidate, and which of them reached a steady state."""
    with ExitStack() as stack:
        sides = written(candidates, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        processes, steady = [], [True] * len(candidates)
        for index in range(effort.processes):
            process = stack.enter_context(Process(max(c.recipe.threads for c in candidates)))
            answer = process.ask(
                "load",
                sides=sides,
                sessions=effort.sessions,
                reference=effort.reference,
                gap_seconds=effort.gap_seconds,
                seed=effort.seed + index,
            )
            steady = [a and b for a, b in zip(steady, answer["steady"], strict=True)]
            processes.append(process)
        yield processes, steady


def written(candidates: Sequence[Candidate], folder: Path) -> list[JSON]:
    """The inputs as files, equal ones once, and the sides as JSON."""
    feeds: dict[int, Path] = {}
    for candidate in candidates:
        if id(candidate.feed) not in feeds:
            path = folder / f"{len(feeds)}.npz"
            # By number: a name such as "file" is one of savez's own arguments.
            arrays = {f"a{n}": value for n, value in enumerate(candidate.feed.values())}
            np.savez(path, **dict[str, Any](arrays))
            feeds[id(candidate.feed)] = path
    return [candidate.to_json(feeds[id(candidate.feed)]) for candidate in candidates]


def _sampled(
    processes: Sequence[Process], sides: int, effort: Effort
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Single calls of every side, an equal share in every process and session."""
    if not effort.samples:
        return ()
    times: list[list[tuple[float, ...]]] = [[] for _ in range(sides)]
    for index, process in enumerate(processes):
        answer = process.ask(
            "sample",
            more_seconds=sides * effort.sessions * LEAST * (effort.gap_seconds or 0.0),
            samples=-(-effort.samples // len(processes)),
            seconds=effort.sample_seconds / len(processes),
            gap_seconds=effort.gap_seconds,
            seed=effort.seed + index,
        )
        for side, sessions in enumerate(answer["seconds"]):
            times[side] += [tuple(session) for session in sessions]
    return tuple(tuple(side) for side in times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What a runtime says of a model that it has loaded."""

    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodePrecision, ...]
    describe: Mapping[str, JSON]
    footprint: Mapping[str, JSON]
    joules: float | None


def look_inside(candidate: Candidate) -> Inside:
    """Operators with time and precision; memory, load time and first inference, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        (side,) = written([candidate], Path(folder))
        footprint = _footprint(side, candidate.recipe.threads)
        with Process(candidate.recipe.threads) as process:
            process.ask("load", sides=[side], sessions=1, reference=False, gap_seconds=None, seed=0)
            found = process.ask("operators", side=0, runs=_PROFILED)
            gpu = candidate.hardware.kind is DeviceKind.GPU
            # The processor's counter says nothing of a GPU.
            energy = {"joules": None} if gpu else process.ask("energy", side=0)
    return Inside(
        operators=tuple(
            OperatorTime(name=n, op=op, seconds=s, least=least) for n, op, s, least in found["times"]
        ),
        nodes=tuple(
            NodePrecision(name=n, op=op, integer=i, weighted=w, covers=tuple(c), placement=p)
            for n, op, i, w, c, p in found["nodes"]
        ),
        describe=found["describe"],
        footprint=footprint,
        joules=energy["joules"],
    )


def _footprint(side: JSON, threads: int) -> dict[str, JSON]:
    """Memory and load time; where they cannot be had the reason, for the rounds are worth keeping."""
    try:
        with Process(threads) as process:
            return process.ask("footprint", side=side)
    except HwoptError as error:
        nothing = dict.fromkeys(("load_seconds", "first_seconds", "peak_bytes", "added_bytes"))
        return {**nothing, "reason": error.problems[0].problem}


def working(candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
    """Those that load and run, and why the others do not, by runtime."""
    kept, refused = [], {}
    for candidate in candidates:
        try:
            with loaded([candidate], Effort(processes=1, sessions=1, reference=False)):
                kept.append(candidate)
        except HwoptError as error:
            refused[candidate.runtime] = error.problems[0].problem
    return kept, refused
