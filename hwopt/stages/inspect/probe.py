"""The process that tries a model: unusual inputs, two sessions at once, many calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hwopt.core.backend import BackendSpec, Recipe, Runtime
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.plugins import load_reference, resolve
from hwopt.processes import Answer, Say

_CLOSE = 1e-3  # of the greatest output: batches may be added up in another order
_CALLS = 20  # of each of two sessions
_SLICES = 20  # parts of a soak, to see a drift


class Operations:
    """Each question: ``{"ok": bool, "why": text}`` and what was seen."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def _load(self, asked: Mapping[str, Any]) -> tuple[Runtime, str, Array]:
        if self._runtime is None:
            self._runtime = _loaded(asked)
        ((name, shape),) = self._runtime.inputs().items()
        with np.load(asked["feed"], allow_pickle=False) as archive:
            x = archive["x"]
        return self._runtime, name, x[: shape[0]] if shape[0] is not None else x

    def _one(self, asked: Mapping[str, Any]) -> tuple[Runtime, str, Array]:
        """The least that the model takes: one sample, or its fixed batch."""
        runtime, name, x = self._load(asked)
        return runtime, name, x[: runtime.inputs()[name][0] or 1]

    def batches(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """One sample alone gives what it gives among others; up to the greatest batch."""
        runtime, name, x = self._load(asked)
        shape = runtime.inputs()[name]
        if shape[0] is not None:
            return {
                "ok": True,
                "why": f"the model takes {shape[0]} samples and no other number",
                "sizes": [shape[0]],
            }
        together = runtime.run({name: x})[0]
        apart = np.concatenate([runtime.run({name: x[i : i + 1]})[0] for i in range(len(x))])
        least = 1e-6
        gap = float(np.abs(together - apart).max() / max(float(np.abs(apart).max()), least))
        same = float((together.argmax(-1) == apart.argmax(-1)).mean()) if together.ndim == 2 else 1.0
        good = gap <= _CLOSE or same >= 0.99  # a quantized value may fall to the other side of an edge
        return {
            "ok": bool(np.isfinite(together).all() and good),
            "why": f"alone and among {len(x)}: outputs differ by {gap:.1e} of the greatest, {same:.1%} of the "
            "choices agree",
            "sizes": [1, len(x)],
        }

    def wrong_type(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """An input of another type is refused, and the next right one served."""
        return self._refuses(
            asked, lambda x: x.astype(np.float64 if x.dtype != np.float64 else np.int32), "type"
        )

    def wrong_shape(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """An input with another size is refused, and the next right one served."""
        return self._refuses(asked, lambda x: np.concatenate([x, x], axis=1), "shape")

    def _refuses(self, asked: Mapping[str, Any], change: Callable[[Array], Array], what: str) -> Answer:
        runtime, name, x = self._one(asked)
        right = runtime.run({name: x})[0] if len(x) else None
        try:
            runtime.run({name: change(x)})
            said = None
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        after = runtime.run({name: x})[0]
        alive = right is not None and np.array_equal(np.asarray(after), np.asarray(right))
        why = f"refused: {said}" if said else f"an input of another {what} is taken without a word"
        return {
            "ok": bool(said and alive),
            "why": why if alive else f"{why}; it answers otherwise afterwards",
        }

    def not_a_number(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """NaN in, and nothing breaks; whether it can be seen in the output."""
        runtime, name, x = self._one(asked)
        if x.dtype.kind != "f":
            return {"ok": True, "why": "the inputs are no floats"}
        seen = runtime.run({name: np.full_like(x, np.nan)})[0]
        shows = not np.isfinite(seen).all()
        after = runtime.run({name: x})[0]
        why = (
            "it shows in the output"
            if shows
            else "the output looks like any other: check inputs before the model"
        )
        return {"ok": bool(np.isfinite(after).all()), "why": why, "shows": shows}

    def again(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """The same input gives the same output, in a second session too."""
        runtime, name, x = self._one(asked)
        first, second = runtime.run({name: x})[0], runtime.run({name: x})[0]
        other = _loaded(asked)
        third = other.run({name: x})[0]
        other.close()
        same = np.array_equal(first, second) and np.array_equal(first, third)
        return {"ok": same, "why": "bit for bit the same" if same else "outputs differ from call to call"}

    def together(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Two sessions at the same time give what each gives alone."""
        runtime, name, x = self._one(asked)
        alone = runtime.run({name: x})[0]

        def work() -> int:
            mine = _loaded(asked)
            same = sum(np.array_equal(mine.run({name: x})[0], alone) for _ in range(_CALLS))
            mine.close()
            return same

        with ThreadPoolExecutor(2) as pool:
            same = sum(future.result() for future in [pool.submit(work) for _ in range(2)])
        return {"ok": same == 2 * _CALLS, "why": f"{same} of {2 * _CALLS} answers are the same as alone"}

    def soak(self, asked: Mapping[str, Any], say: Say) -> Answer:
        """Calls without a pause: whether memory grows and time drifts."""
        runtime, name, x = self._one(asked)
        seconds = float(asked["soak_seconds"])
        memory, typical, calls = [], [], 0
        for part in range(_SLICES):
            end, times = time.monotonic() + seconds / _SLICES, list[float]()
            while time.monotonic() < end or not times:
                start = time.perf_counter()
                runtime.run({name: x})
                times.append(time.perf_counter() - start)
            calls += len(times)
            typical.append(float(np.median(times)))
            memory.append(_resident())
            say(f"soak: {part + 1} of {_SLICES}")
        later = memory[_SLICES // 4 :]  # caches fill at the beginning
        slope = None if None in later else (later[-1] - later[0]) / later[0]  # type: ignore[operator]
        drift = float(np.median(typical[-5:]) / np.median(typical[5:10]) - 1)
        grown = "unknown" if slope is None else f"{slope:+.2%}"
        return {
            "ok": slope is None or slope < 0.01,
            "why": f"{calls:,} calls in {seconds:.0f} s: memory {grown}, typical time {drift:+.1%}",
            "seconds": seconds,
            "memory_growth": slope,
            "time_drift": drift,
        }


def _loaded(asked: Mapping[str, Any]) -> Runtime:
    backend: BackendSpec = resolve("backend", asked["runtime"])
    hardware = HardwareProfile.model_validate_json(json.dumps(asked["hardware"]))
    runtime: Runtime = load_reference(backend.load)(
        Path(asked["model"]), Recipe.from_json(asked["recipe"]), hardware
    )
    return runtime


def _resident() -> int | None:
    """Bytes in memory now."""
    try:
        lines = Path("/proc/self/status").read_text().split("\n")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)
