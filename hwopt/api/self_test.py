"""The measuring itself against the truth: one file as both sides, and a difference of known size."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any, Final

import numpy as np

from hwopt.api.bench import fit_to_measure, runtimes_for
from hwopt.api.options import Options, feed_of
from hwopt.core.measurement import Interval, Tier, Verdict
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.single import device
from hwopt.latency.measure import Candidate, measure_all
from hwopt.latency.reference import small_model
from hwopt.measuring.preflight import preflight

_PARTS: Final = 20  # a planted difference is one part in so many: 5 %
_PLANT_EVERY: Final = 3


def self_test(
    model: str | Path | None = None,
    *,
    comparisons: int = 30,
    margin: float = 0.03,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """One file as both sides, again and again: how often this machine makes the method say something false.

    Every comparison has fresh processes and sessions. After every third, a difference of 5 % is planted by an
    exact count of inferences, to see that the method is not merely blind.

    Args:
        model: an ONNX file; a small convolution of hwopt's own if left out.
        margin: a comparison fails where the whole interval says slower by more than this.
    Returns:
        JSON with counts of verdicts and of false claims, the bias and the error of the estimates, half-widths.
    """
    chosen = Options(**options)
    hardware = device(chosen.target)
    (runtime, *_) = runtimes_for(chosen, hardware)
    fit_to_measure(chosen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "convolution.onnx" if model is None else Path(model)
        if model is None:
            path.write_bytes(small_model())
        side = Candidate(
            model=path,
            runtime=runtime,
            hardware=hardware,
            feed=feed_of(path, chosen),
            recipe=chosen.recipe(),
        )
        found, planted = [], []
        for index in range(comparisons):
            effort = replace(
                chosen.effort(), seed=chosen.seed + index, margin=margin, reference=False, samples=0
            )
            found.append(measure_all([side, side], effort).compare(1))
            if index % _PLANT_EVERY == 0:  # the same file, and one inference in twenty more
                sides = [replace(side, inferences=_PARTS), replace(side, inferences=_PARTS + 1)]
                planted.append(measure_all(sides, effort).compare(1))
            ratio = found[-1].interval()
            progress(f"{index + 1}/{comparisons}: {ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    intervals = [one.interval() for one in found]
    verdicts = [one.verdict(margin) for one in found]
    truth = _PARTS / (_PARTS + 1)
    off = [one.interval() for one in planted]
    known = [i for i in intervals if np.isfinite([i.low, i.high]).all()]
    errors = [abs(i.estimate - 1) for i in intervals]
    return {
        "schema_version": 1,
        "tier": Tier.MEASURED.value,
        "device": hardware.name,
        "runtime": runtime,
        "comparisons": comparisons,
        "margin": margin,
        "verdicts": {v.value: verdicts.count(v) for v in Verdict},
        "false_claims": sum(i.low > 1 or i.high < 1 for i in known),
        "planted": {
            "truth": truth,
            "missed": sum(not i.low <= truth <= i.high for i in off),
            "verdicts": {v.value: sum(one.verdict(margin) is v for one in planted) for v in Verdict},
            "estimates": [one.interval().estimate for one in planted],
        },
        "bias": statistics.mean(i.estimate for i in intervals) - 1,
        "error_median": statistics.median(errors),
        "error_p95": float(np.percentile(errors, 95)),
        "half_width_median": statistics.median((i.high - i.low) / 2 for i in known) if known else None,
        "clean_share": statistics.mean(one.clean_share for one in found),
        "preflight": preflight().to_json(),
        "healthy": healthy(verdicts, [*_shifted(known, 1.0), *_shifted(off, truth)])
        and _plausible(sum(one.verdict(margin) is Verdict.PASS for one in planted), len(planted), 0.01),
    }


def _shifted(intervals: Sequence[Interval], truth: float) -> list[Interval]:
    """As if the truth were 1."""
    return [Interval(i.estimate / truth, i.low / truth, i.high / truth) for i in intervals]


def healthy(verdicts: Sequence[Verdict], known: Sequence[Interval]) -> bool:
    """Something is known, hardly a false FAIL, and intervals that miss the truth no oftener than 5 %.

    The allowance is the binomial's 99 % bound at 1 and 5 %, so that a sound machine is hardly ever accused.
    """
    missed = sum(i.low > 1 or i.high < 1 for i in known)
    false = verdicts.count(Verdict.FAIL)
    return bool(known) and _plausible(false, len(verdicts), 0.01) and _plausible(missed, len(known), 0.05)


def _plausible(events: int, n: int, rate: float) -> bool:
    at_least = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(events, n + 1))
    return at_least > 0.01
