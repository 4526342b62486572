"""Which of the cheap methods help this network: tried one after the other, kept where the output gets closer.

No observer and no correction wins everywhere; the signal-to-noise ratio of the output on the calibration
samples says which does here. What the user set is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hwopt.core.canonical import JSON
from hwopt.quantization.settings import ObserverSettings, PtqSettings

# One change a trial, in the order in which the methods act.
_STEPS: Final[tuple[Mapping[str, Any], ...]] = (
    {"equalize": True},
    {"observer": ObserverSettings(name="percentile")},
    {"observer": ObserverSettings(name="min_max")},
    {"weight_range": "max"},
    {"bias_correction": True},
)


def tuned(
    settings: PtqSettings, decibels: Callable[[PtqSettings], float]
) -> tuple[PtqSettings, float, list[JSON]]:
    """The best settings that were tried, their signal-to-noise ratio, and all trials.

    Args:
        decibels: quantizes with the settings and measures; dB, more is better.
    """
    best, score = settings, decibels(settings)
    trials: list[JSON] = [{"change": "none", "sqnr_db": score, "kept": True}]
    for change in _STEPS:
        if not settings.tune or set(change) & settings.model_fields_set:
            continue
        trial = best.model_copy(update=dict(change))
        reached = decibels(trial)
        kept = reached > score
        name, value = next(iter(change.items()))
        text = value.name if isinstance(value, ObserverSettings) else str(value).lower()
        trials.append({"change": f"{name}: {text}", "sqnr_db": reached, "kept": kept})
        if kept:
            best, score = trial, reached
    return best, score, trials
