"""What a search may ask for: of a device, of chains, of restarts; and what no version can keep. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.profile import PipelineProfile, Requirement
from hwopt.core.search import CANDIDATE, Objective, SearchSettings
from hwopt.errors import Problem
from hwopt.plugins import resolve
from hwopt.search.versions import with_teachers

_RATIOS: Final = frozenset({"relative_latency", "speedup"})  # to the float model, on the same device


def contradictions(limits: tuple[Requirement, ...], where: str) -> list[Problem]:
    """Limits that no version can keep, whatever it is."""
    found: list[Problem] = []
    for metric in dict.fromkeys(r.metric for r in limits):
        mine = [r for r in limits if r.metric == metric]
        lowest = max((r.min for r in mine if r.min is not None), default=-math.inf)
        highest = min((r.max for r in mine if r.max is not None), default=math.inf)
        if lowest > highest:
            text = f"{metric} is to be at least {lowest:g} and at most {highest:g}: no version can be both"
            found.append(Problem(problem=text, where=where, fix="remove one of the two"))
        least, most = _RANGES.get(metric, (-math.inf, math.inf))
        if lowest > most or highest < least:
            bound = lowest if lowest > most else highest
            text = f"{metric} is never {'above' if lowest > most else 'below'} {most if lowest > most else least:g}"
            found.append(
                Problem(problem=f"{text}, and the limit is {bound:g}", where=where, fix="mend the limit")
            )
    slowest = [r for r in limits if _share_bounds(r)[1] < math.inf]
    fastest = [r for r in limits if _share_bounds(r)[0] > 0]
    if slowest and fastest:
        under = min(slowest, key=lambda r: _share_bounds(r)[1])
        over = max(fastest, key=lambda r: _share_bounds(r)[0])
        low, high = _share_bounds(over)[0], _share_bounds(under)[1]
        if low > high and over.metric != under.metric:
            text = f"{over} is a relative latency of at least {low:.3g}, and {under} is one of at most {high:.3g}"
            found.append(Problem(problem=text, where=where, fix="remove one of the two"))
    return found


def _share_bounds(requirement: Requirement) -> tuple[float, float]:
    """A bound on latency as an interval of shares of the float model's: a speed-up is its inverse."""
    low, high = requirement.min, requirement.max
    if requirement.metric == "speedup":
        low, high = (1 / high if high else None), (1 / low if low else None)
    elif requirement.metric != "relative_latency":
        low = high = None
    return (0.0 if low is None else low), (math.inf if high is None else high)


_RANGES: Final = {
    "accuracy": (0.0, 1.0),
    "accuracy_drop": (-1.0, 1.0),
    "f1": (0.0, 1.0),
    "agreement": (0.0, 1.0),
    "latency_ms": (0.0, math.inf),
    "relative_latency": (0.0, math.inf),
    "speedup": (0.0, math.inf),
    "file_bytes": (1.0, math.inf),
    "activation_bytes": (1.0, math.inf),
    "parameters": (1.0, math.inf),
    "macs": (1.0, math.inf),
}


def default_objectives(
    limits: Sequence[Requirement], hardware: HardwareProfile | None
) -> tuple[Objective, ...]:
    """The fastest where accuracy is bounded, else the most accurate."""
    fastest = (
        "latency_ms" if hardware is not None and hardware.kind is DeviceKind.FPGA else "relative_latency"
    )
    if any(r.metric in {"accuracy", "accuracy_drop", "f1"} for r in limits):
        bounded = [r.metric for r in limits if r.metric in {"latency_ms", "relative_latency", "speedup"}]
        chosen: Any = bounded[0] if bounded else fastest
        return (Objective(metric=chosen),)
    return (Objective(metric="accuracy"),)


def not_given(metrics: Sequence[str], target: str, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """(problem, fix) of what a device has no number for, whoever looks at it."""
    is_fpga = hardware is not None and hardware.kind is DeviceKind.FPGA
    found = []
    for metric in metrics:
        if is_fpga and metric in _RATIOS:
            text = f"{metric} is a ratio to the float model, which has no design on {target}"
            found.append((text, "use latency_ms; a limit for another target names it: target: NAME"))
        if not is_fpga and metric == "fits":
            text = f"fits is of FPGA designs, and the search is for {target}"
            found.append((text, "give the requirement its target, or search.target an FPGA"))
    return found


def restart_problems(profile: PipelineProfile, settings: SearchSettings) -> list[tuple[str, str]]:
    """Why a winner cannot be trained several times."""
    if settings.restarts == 1:
        return []
    chained = [c for c in profile.candidates if c.chain]
    for one in chained:
        if resolve("stage", one.chain[0].stage).members(one.chain[0].config) > 1:
            text = f"search.restarts and {one.name}'s own ensemble both train several times"
            return [(text, "remove one of the two")]
    share = getattr(profile.source.config, "validation_share", None)
    if share is None:
        return [
            ("search.restarts trains the model several times, and it is an ONNX file", "name a torch model")
        ]
    searched = settings.space.get("train.validation_share")
    tried = () if searched is None else searched.ends if searched.one_of is None else searched.one_of
    if min([share, *(v for v in tried if isinstance(v, int | float))]) <= 0:
        text = "search.restarts compares on validation samples, and train may hold back none"
        return [(text, "set train.validation_share above 0")]
    return []


def chain_problems(
    profile: PipelineProfile, settings: SearchSettings, candidate: str, metrics: list[str]
) -> list[tuple[str, str]]:
    """What the chains that are searched cannot be judged by."""
    axis = settings.space.get(CANDIDATE)
    names = {candidate} if axis is None else set(axis.one_of or ())
    chains = {c.name: c.chain for c in profile.candidates if c.name in names}
    found = []
    for one in with_teachers(profile, list(names)):
        stage = next((k.stage for k in one.chain if not resolve("stage", k.stage).shortens), None)
        if settings.halving is not None and stage is not None:
            text = f"halving trains a share first, which does not show how good {one.name}'s {stage} will be"
            found.append((text, "leave out halving, or the candidate"))
    if "validation_accuracy" in {*metrics, settings.halving.on if settings.halving is not None else None}:
        for name, chain in chains.items():
            if chain and chain[-1].stage != "finetune":
                text = (
                    f"validation_accuracy is of a training's own end, and {name} ends with {chain[-1].stage}"
                )
                found.append((text, "use accuracy: of the fold that is held out"))
                continue
            last = chain[-1] if chain else profile.source
            if not getattr(last.config, "validation_share", None):
                text = f"validation_accuracy is of validation samples, and {last.stage} holds back none"
                found.append((text, "use accuracy: of the fold that is held out"))
    return found
