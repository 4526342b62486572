"""A version of a profile for one job: before training, with less training, trained several times. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from hwopt.core.canonical import canonical_json
from hwopt.core.profile import Candidate, Link, PipelineProfile
from hwopt.core.search import STRUCTURAL
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec
from hwopt.plugins import resolve


def untrained(profile: PipelineProfile) -> PipelineProfile:
    """The profile whose networks keep their fresh weights; chains keep what changes their structure."""
    source = profile.source
    if source.stage == "train":
        source = Link(stage="untrained", config=resolve("stage", "untrained").config(), where=source.where)
    candidates = []
    for candidate in profile.candidates:
        chain = []
        for link in candidate.chain:
            spec: StageSpec = resolve("stage", link.stage)
            config = spec.untrained(link.config)
            if config is not None:
                chain.append(replace(link, config=config))
        candidates.append(Candidate(name=candidate.name, chain=tuple(chain), where=candidate.where))
    return replace(profile, source=source, candidates=tuple(candidates))


def with_teachers(profile: PipelineProfile, names: Sequence[str]) -> tuple[Candidate, ...]:
    """Candidates by name, the teachers that they learn from, and theirs."""
    wanted = set(names)
    for _ in profile.candidates:
        links = [link for c in profile.candidates if c.name in wanted for link in c.chain]
        wanted |= {
            t for link in links if (t := getattr(getattr(link.config, "distill", None), "teacher", None))
        }
    return tuple(c for c in profile.candidates if c.name in wanted)


def known_before(profile: PipelineProfile, candidate: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Metrics that a chain's structure tells before training, and the stages that only training decides."""
    chain = next(c.chain for c in profile.candidates if c.name == candidate)
    found, deciding = STRUCTURAL, list[str]()
    for link in chain:
        spec: StageSpec = resolve("stage", link.stage)
        known = spec.known(link.config)
        if known is not None:
            found &= known
            deciding.append(link.stage)
    return found, tuple(deciding)


def shortened(profile: PipelineProfile, share: float, samples: int) -> PipelineProfile:
    """The profile with a share of every training's steps; of the epochs where steps cannot be bounded."""

    def less(config: Any) -> Any:
        fields = type(config).model_fields
        update: dict[str, Any] = {}
        if "max_steps" in fields:
            kept = samples - round(samples * config.validation_share)
            size = kept if config.batch_size == "full" else config.batch_size
            whole = math.ceil(kept / size) * config.epochs
            update["max_steps"] = max(1, round(min(whole, config.max_steps or whole) * share))
            warmup = config.schedule.warmup
            if isinstance(warmup, int):  # in steps, of which there are fewer now
                update["schedule"] = config.schedule.model_copy(
                    update={"warmup": max(1, round(warmup * share))}
                )
        elif "epochs" in fields and getattr(config, "method", "qat") == "qat":
            update["epochs"] = max(1, round(config.epochs * share))
        changed = config.model_copy(update=update) if update else config
        for name in fields:  # trainings within the step: between cuts, of the super-net
            part = getattr(config, name)
            if isinstance(part, Settings) and "epochs" in type(part).model_fields:
                inner = changed.model_copy(update={name: less(part)})
                changed = (
                    inner if _is_legal(inner) else changed
                )  # not legal: these settings do no such training
        return changed

    source = replace(profile.source, config=less(profile.source.config))
    candidates = tuple(
        replace(c, chain=tuple(replace(link, config=less(link.config)) for link in c.chain))
        for c in profile.candidates
    )
    return replace(profile, source=source, candidates=candidates)


def _is_legal(config: Settings) -> bool:
    """Whether settings that were changed could stand in a profile."""
    try:
        type(config).model_validate_json(canonical_json(config.model_dump(mode="json", exclude_unset=True)))
    except ValidationError:
        return False
    return True


def restarted(profile: PipelineProfile, candidate: str, times: int) -> PipelineProfile:
    """The profile whose candidate begins with the best of several trainings of the float model.

    The float model itself stays what it is: a candidate without a chain gets another name.
    """
    share = getattr(profile.source.config, "validation_share", 0.0)
    config = resolve("stage", "ensemble").config(members=times, validation_share=share)
    candidates = []
    for one in profile.candidates:
        if one.name == candidate:
            link = Link(stage="ensemble", config=config, where=one.where or "search.restarts")
            one = Candidate(
                name=best_of(one.name, one.chain, times), chain=(link, *one.chain), where=one.where
            )
        candidates.append(one)
    return replace(profile, candidates=tuple(candidates))


def best_of(name: str, chain: Any, times: int) -> str:
    """Name of a candidate that begins with several trainings."""
    return name if chain else f"{name}-best-of-{times}"
