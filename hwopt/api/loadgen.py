"""Latencies by MLPerf LoadGen beside our own, in one process."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hwopt.api.bench import runtimes_for
from hwopt.api.options import Options, feed_of
from hwopt.core.dataset import Array
from hwopt.core.measurement import Tier
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.single import device
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.latency.measure import Candidate, Effort, loaded
from hwopt.measuring.percentiles import percentiles

_QUERIES: Final = 2800
_LEAST: Final = 700  # a turn: LoadGen certifies no 99th percentile from fewer than 662
_NAMES: Final = ("p50", "p90", "p99", "p90_bound", "p99_bound")
_TURNS: Final = 4  # ours and theirs alternate, so that a drift of the machine meets both


def loadgen(
    models: Sequence[str | Path],
    *,
    inputs: str | Path | Mapping[str, Array] | None = None,
    queries: int = _QUERIES,
    progress: Progress = silent,
    **options: Any,
) -> list[dict[str, Any]]:
    """Percentiles of single queries by LoadGen (single stream), and ours from calls between its turns.

    No MLPerf result, whatever it says.

    Args:
        models, inputs, options: as for ``benchmark``.
        queries: in all; at least 64 a turn.
    Raises:
        EngineMissingError: the extra ``loadgen`` is not installed.
    """
    chosen = Options(**options)
    can_load(chosen)
    hardware = device(chosen.target)
    (runtime, *_) = runtimes_for(chosen, hardware)
    found = []
    for model in map(Path, models):
        side = Candidate(
            model=model,
            runtime=runtime,
            hardware=hardware,
            feed=feed_of(model, chosen, inputs),
            recipe=chosen.recipe(),
        )
        each = max(_LEAST, queries // _TURNS)
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        with loaded([side], Effort(processes=1, sessions=1, reference=False)) as ((process,), _):
            for _ in range(_TURNS):
                answer = process.ask("sample", samples=each, seconds=60.0, gap_seconds=None, seed=chosen.seed)
                ((times,),) = answer["seconds"]
                ours.append(percentiles([times]))
                expected = statistics.median(times)
                answer = process.ask("loadgen", side=0, queries=each, expected_seconds=expected)
                theirs.append(answer["nanoseconds"])
        progress(f"loadgen: {model.name}, {len(theirs) * each} queries")
        found.append(
            {
                "model": str(model),
                "runtime": runtime,
                "tier": Tier.MEASURED.value,
                "note": "LoadGen's single stream; no MLPerf result",
                "queries": len(theirs) * each,
                **{f"{name}_ms": _median(theirs, name, 1e-6) for name in _NAMES},
                "own_ms": {name: _median(ours, name, 1e3) for name in _NAMES},
            }
        )
    return found


def can_load(options: Options) -> None:
    """Whether LoadGen can be asked at all; before anything is measured.

    Raises:
        EngineMissingError: the extra ``loadgen`` is not installed.
        ConfigError: several runtimes, or pauses between calls.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise EngineMissingError(
            "the package mlcommons-loadgen is not installed", fix="pip install 'hwopt[loadgen]'"
        )
    if options.scenario == "paced":
        raise ConfigError("LoadGen's single stream asks without pauses", fix="leave out --scenario paced")
    if len(options.runtimes) > 1 or "auto" in options.runtimes:
        raise ConfigError("LoadGen is asked in one runtime", fix="name one with --runtime")


def _median(turns: Sequence[Mapping[str, Any]], name: str, unit: float) -> float | None:
    """Over turns, in milliseconds: one disturbed turn is not the result of either side."""
    values = [turn[name] for turn in turns if turn[name] is not None]
    return statistics.median(values) * unit if values else None
