"""Latencies by MLPerf LoadGen, as a second opinion on our own percentiles.

Never an MLPerf result: its rules ask for far more than its load generator.

Reference:
    Reddi et al., "MLPerf Inference Benchmark", ISCA 2020 (single stream).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import mlperf_loadgen as lg
import numpy as np

_LINE: Final = re.compile(r"^([\w.() %-]+?)\s*:\s*(\d+)$", re.MULTILINE)
_EARLY: Final = re.compile(r"Early stopping (\d+)\.0th percentile estimate: (\d+)")
_QUERIES: Final = re.compile(r"Processed at least \d+ queries \((\d+)\)")


def single_stream(
    call: Callable[[], Any], *, queries: int, expected_seconds: float
) -> dict[str, float | int | None]:
    """One query after the other.

    Args:
        call: one inference.
        expected_seconds: of a call; LoadGen prepares its list of queries from it.
    Returns:
        nanoseconds: ``p50``, ``p90``, ``p99``, and the certified bounds ``p90_bound`` and ``p99_bound``, None
        where there were too few queries; and ``queries``.
    """
    response = np.zeros(1, np.uint8)  # LoadGen takes its address, not its content

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            call()
            lg.QuerySamplesComplete(
                [lg.QuerySampleResponse(sample.id, response.ctypes.data, response.nbytes)]
            )

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = queries
    settings.min_duration_ms = 0
    settings.single_stream_expected_latency_ns = max(1, int(expected_seconds * 1e9))
    with tempfile.TemporaryDirectory() as folder:
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        log = lg.LogSettings()
        log.log_output, log.enable_trace = output, False
        sut = lg.ConstructSUT(issue, lambda: None)
        library = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, log)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return parsed(summary)


def parsed(summary: str) -> dict[str, float | int | None]:
    """What the text of ``mlperf_log_summary.txt`` says, in nanoseconds."""
    lines = {name.strip(): int(value) for name, value in _LINE.findall(summary)}
    early = {int(p): float(value) for p, value in _EARLY.findall(summary)}
    queries = _QUERIES.search(summary)
    found: dict[str, float | int | None] = {
        f"p{p}": float(lines[f"{p}.00 percentile latency (ns)"]) for p in (50, 90, 99)
    }
    return found | {
        "p90_bound": early.get(90),
        "p99_bound": early.get(99),
        "queries": int(queries[1]) if queries else None,
    }
