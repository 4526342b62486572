"""The process that measures: it loads models, runs rounds, and answers one line of JSON a question.

``workers.py`` starts it; ``hwopt.processes`` carries questions and answers. A process of its own because a fresh one
has a memory layout of its own, because its peak memory is the model's alone, and because a runtime that
crashes then takes no pipeline along.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hwopt.core.backend import BackendSpec, Compiled, Recipe, Runtime
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.measuring.block import LEAD_IN, Call
from hwopt.measuring.energy import joules_a_call, package_counter
from hwopt.measuring.percentiles import LEAST, sample
from hwopt.measuring.sides import Round, Sides
from hwopt.plugins import load_reference, resolve
from hwopt.processes import Answer, Say

_PEAK_RESET: Final = Path("/proc/self/clear_refs")


class Operations:
    """State of the process: the sessions of every side."""

    def __init__(self) -> None:
        self._runtimes: list[list[Runtime]] = []
        self._feeds: list[dict[str, Array]] = []
        self._sides: Sides | None = None

    def load(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Fresh sessions of every side, and the reference workload as the last one; earlier ones are freed."""
        for runtime in (one for side in self._runtimes for one in side):
            runtime.close()
        self._runtimes, self._feeds, self._sides = [], [], None
        sides, sessions = asked["sides"], asked["sessions"]
        self._feeds = [_feed(side) for side in sides]
        self._runtimes = [[] for _ in sides]
        # In random order: whichever side were loaded last would lie elsewhere in memory, in every process.
        for index in np.random.default_rng(asked["seed"]).permutation(
            np.repeat(np.arange(len(sides)), sessions)
        ):
            self._runtimes[index].append(_load(sides[index]))
        calls: list[list[Call]] = [
            [_call(runtime, feed, side["inferences"]) for runtime in runtimes]
            for runtimes, feed, side in zip(self._runtimes, self._feeds, sides, strict=True)
        ]
        waits = [side["hardware"]["kind"] == DeviceKind.GPU.value for side in asked["sides"]]
        if asked["reference"]:
            make: Callable[[], Call] = load_reference("hwopt.latency.reference:reference")
            calls.append([make()] * asked["sessions"])
            waits.append(False)
        # The reference is never paced: it is compared with what it took elsewhere.
        gaps = [asked["gap_seconds"]] * len(sides) + [None] * asked["reference"]
        self._sides = Sides(calls, waits=waits, gaps=gaps)
        return {"steady": self._sides.steady[: len(sides)]}

    def rounds(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Seconds of a call and cleanness, by round and side."""
        if self._sides is None:
            raise ValueError("nothing is loaded")
        rounds = [Round(order=tuple(o), session=tuple(s)) for o, s in asked["rounds"]]
        return {"blocks": [[[b.seconds, b.clean] for b in blocks] for blocks in self._sides.rounds(rounds)]}

    def sample(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Seconds of single calls, by side and session; sides take turns, each session in a turn of its own."""
        order = np.random.default_rng(asked["seed"])
        times: list[list[list[float]]] = [[[] for _ in runtimes] for runtimes in self._runtimes]
        share = len(self._runtimes[0]) if self._runtimes else 1
        for session in range(share):
            for side in order.permutation(len(self._runtimes)):
                call = _call(self._runtimes[side][session], self._feeds[side])
                for _ in range(LEAD_IN):
                    call()
                times[side][session] = sample(
                    call,
                    samples=-(-asked["samples"] // share),
                    seconds=asked["seconds"] / share,
                    gap=asked["gap_seconds"] or 0.0,
                    least=-(-LEAST // share),
                )
        return {"seconds": times}

    def loadgen(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """The same by LoadGen."""
        single_stream = load_reference("hwopt.latency.loadgen:single_stream")
        call = _call(self._runtimes[asked["side"]][0], self._feeds[asked["side"]])
        return {
            "nanoseconds": single_stream(
                call, queries=asked["queries"], expected_seconds=asked["expected_seconds"]
            )
        }

    def operators(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Typical time of each operator, by the runtime's own clock, and the precision of each."""
        runtime = self._runtimes[asked["side"]][0]
        times = runtime.profile(self._feeds[asked["side"]], asked["runs"])
        nodes = runtime.executed()
        return {
            "times": [[t.name, t.op, t.seconds, t.least] for t in times],
            "nodes": [[n.name, n.op, n.integer, n.weighted, list(n.covers), n.placement] for n in nodes],
            "describe": dict(runtime.describe()),
        }

    def energy(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Joules a call, where the processor's counter can be read."""
        counter = package_counter()
        if counter is None:
            return {"joules": None}
        call = _call(self._runtimes[asked["side"]][0], self._feeds[asked["side"]])
        return {"joules": joules_a_call(call, counter), "counter": counter.name}

    def compile(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Build for a device that need not be here."""
        backend: BackendSpec = resolve("backend", asked["backend"])
        if backend.compiles is None:
            raise ValueError(f"{asked['backend']} compiles nothing")
        hardware = HardwareProfile.model_validate_json(json.dumps(asked["hardware"]))
        made: Compiled = load_reference(backend.compiles)(Path(asked["model"]), hardware, asked["batch"])
        return {"compiled": made.to_json()}

    def footprint(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Peak memory, load time and time of the first inference; ask it of a process that did nothing else."""
        side = asked["side"]
        backend: BackendSpec = resolve("backend", side["runtime"])
        load_reference(backend.load)  # importing the runtime's library is not loading the model
        feed = _feed(side)
        before = _peak_bytes(reset=True)
        start = time.perf_counter()
        runtime = _load(side)
        loaded = time.perf_counter()
        runtime.run(feed)
        ran = time.perf_counter()
        runtime.run(feed)
        after = _peak_bytes(reset=False)
        runtime.close()
        return {
            "load_seconds": loaded - start,
            "first_seconds": ran - loaded,
            "peak_bytes": after,
            "added_bytes": None if after is None or before is None else max(after - before, 0),
        }


def _load(side: Mapping[str, Any]) -> Runtime:
    backend: BackendSpec = resolve("backend", side["runtime"])
    hardware = HardwareProfile.model_validate_json(json.dumps(side["hardware"]))
    runtime: Runtime = load_reference(backend.load)(
        Path(side["model"]), Recipe.from_json(side["recipe"]), hardware
    )
    return runtime


def _feed(side: Mapping[str, Any]) -> dict[str, Array]:
    with np.load(side["feed"], allow_pickle=False) as archive:
        return {name: archive[f"a{n}"] for n, name in enumerate(side["inputs"])}


def _call(runtime: Runtime, feed: dict[str, Array], inferences: int = 1) -> Call:
    if inferences == 1:
        return lambda: runtime.run(feed)

    def several() -> None:
        for _ in range(inferences):
            runtime.run(feed)

    return several


def _peak_bytes(*, reset: bool) -> int | None:
    """VmHWM of proc(5); ``reset`` lowers it to what is resident now. None where a container forbids it.

    Elsewhere getrusage's, which only grows.
    """
    if _PEAK_RESET.exists():
        try:
            if reset:
                _PEAK_RESET.write_text("5")
            lines = Path("/proc/self/status").read_text().split("\n")
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
