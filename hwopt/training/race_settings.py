"""What a profile may say about a comparison of trainings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hwopt.core.canonical import canonical_json
from hwopt.core.settings import Settings
from hwopt.training.choices import OptimizerSettings, ScheduleSettings, problem


class RaceSettings(Settings):
    """Entrants that differ in one thing, under the same tuning budget and the same seeds."""

    over: Literal["optimizer", "schedule", "init"] = "optimizer"
    # Names, or names with settings: [adamw, {name: momentum, momentum: 0.8}].
    entrants: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=2, max_length=100)]
    trials: Annotated[int, Field(ge=1, le=25)] = 5  # learning rates tried for each, by pattern search
    factor: Annotated[float, Field(gt=1, le=10)] = 3.0  # between neighbours in that search
    seeds: Annotated[int, Field(ge=2, le=1000)] = 5
    accuracy: Annotated[float, Field(gt=0, lt=1)]  # the target, on the validation split
    steps: Annotated[int, Field(ge=10, le=1_000_000)] = 500  # a run that is not there by then has missed
    every: Annotated[int, Field(ge=1)] = 25  # steps between two looks at the validation split
    samples: Annotated[int, Field(ge=100)] = 2000  # of the validation split, at most
    baseline: str | None = None  # ratios are to this one; None: the first entrant

    @model_validator(mode="after")
    def _entrants_are_known(self) -> Self:
        kinds: dict[str, type[Settings]] = {"optimizer": OptimizerSettings, "schedule": ScheduleSettings}
        for entry in self.entrants:
            given = {"name": entry} if isinstance(entry, str) else entry
            if not isinstance(given.get("name"), str) or not isinstance(given.get("label", ""), str):
                raise problem(
                    "entrant", f"the entrant {entry!r} has no name", "write {name: adamw, label: …}"
                )
            if self.over == "init" and set(given) - {"name", "label"}:
                raise problem("entrant", f"init {given['name']!r} takes no options", "remove them")
            if self.over == "init":
                if given.get("name") not in {"default", "he", "xavier", "orthogonal"}:
                    raise problem(
                        "entrant", f"unknown init {given.get('name')!r}", "default, he, xavier or orthogonal"
                    )
                continue
            try:
                kinds[self.over].model_validate_json(
                    canonical_json({k: v for k, v in given.items() if k != "label"})
                )
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                fix = str(first.get("ctx", {}).get("fix", "see docs/training.md"))
                raise problem("entrant", f"entrant {given.get('name')!r}: {first['msg']}", fix) from None
        if len(set(self.labels)) < len(self.labels):
            raise problem(
                "entrant", "two entrants have one label", "give one of them a label: {label: …, name: …}"
            )
        if self.every > self.steps:
            raise problem(
                "every", f"nobody looks before step {self.every}, and a run has {self.steps}", "lower every"
            )
        if self.baseline is not None and self.baseline not in self.labels:
            raise problem("baseline", f"the baseline {self.baseline!r} is no entrant", ", ".join(self.labels))
        return self

    @property
    def labels(self) -> list[str]:
        """What the entrants are called."""
        return [e if isinstance(e, str) else str(e.get("label", e.get("name"))) for e in self.entrants]

    def settings_of(self, label: str) -> dict[str, Any]:
        """What an entrant sets."""
        entry = self.entrants[self.labels.index(label)]
        return {"name": entry} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "label"}
