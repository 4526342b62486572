"""What is searched: a profile, its space, its objectives and its limits; and the profile of one sample."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hwopt.config import profile as profiles
from hwopt.config.yaml_text import Document, parse
from hwopt.core.canonical import JSON, canonical_json, digest_of
from hwopt.core.profile import HOST_CPU, PipelineProfile, Requirement
from hwopt.core.search import CANDIDATE, STRUCTURAL, Holdout, Objective, SearchSettings
from hwopt.engine import host as this_host
from hwopt.engine.prepare import host_profile
from hwopt.errors import ConfigError, Problem
from hwopt.plugins import did_you_mean
from hwopt.search.job import Job, Sample
from hwopt.search.limits import (
    chain_problems,
    contradictions,
    default_objectives,
    not_given,
    restart_problems,
)
from hwopt.search.values import Value, excess
from hwopt.search.versions import best_of, restarted, shortened, untrained, with_teachers

_BY: Final = "search.space"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A profile with a section ``search``, its defaults filled in.

    Attributes:
        limits: the requirements that concern the target of the search.
    """

    profile: PipelineProfile
    settings: SearchSettings
    target: str
    candidate: str
    objectives: tuple[Objective, ...]
    limits: tuple[Requirement, ...]

    @classmethod
    def of(cls, profile: PipelineProfile) -> Subject:
        """Check what can be checked without running anything.

        Raises:
            ConfigError: with every problem: no section ``search``, an axis that leads nowhere, limits that
                contradict each other.
        """
        settings, at = profile.search, profile.where("search")
        if settings is None:
            fix = "write search: {space: {train.optimizer.lr: {log: [1e-4, 1e-1]}}}"
            raise ConfigError("the profile has no section search", where=str(profile.path), fix=fix)
        problems: list[Problem] = []
        targets, names = [t.name for t in profile.targets], [c.name for c in profile.candidates]
        chained = [c.name for c in profile.candidates if c.chain]
        target = settings.target or targets[0]
        candidate = settings.candidate or next(iter(chained), names[0])
        for key, given, known in (("target", target, targets), ("candidate", candidate, names)):
            if given not in known:
                text = f"search.{key} names {given!r}, which the profile does not have"
                problems.append(Problem(problem=text, where=at, fix=did_you_mean(given, known)))
        if CANDIDATE in settings.space and settings.space[CANDIDATE].one_of is None:
            text = "the axis candidate chooses among names, and has none"
            problems.append(
                Problem(problem=text, where=at, fix=f"write candidate: {{one_of: [{', '.join(names)}]}}")
            )
        for one in settings.space[CANDIDATE].one_of or () if CANDIDATE in settings.space else ():
            if one not in names:
                text = f"the axis candidate lists {one!r}, which is no candidate of the profile"
                problems.append(Problem(problem=text, where=at, fix=did_you_mean(str(one), names)))
        limits = tuple(r for r in profile.requirements if r.target in {None, target})
        problems += contradictions(limits, profile.where("requirements"))
        unserved = {r.metric for r in limits} & {"integer_share"}
        for metric in sorted(unserved):
            text = f"{metric} is judged by a gate, and no limit of a search"
            problems.append(
                Problem(
                    problem=text, where=profile.where("requirements"), fix="move it to a policy: hwopt gate"
                )
            )
        hardware = next((t.hardware for t in profile.targets if t.name == target), None)
        objectives = settings.objectives or default_objectives(limits, hardware)
        asked = dict.fromkeys([str(o.metric) for o in objectives] + [str(r.metric) for r in limits])
        wrong = not_given(list(asked), target, hardware) + restart_problems(profile, settings)
        if not problems:
            wrong += chain_problems(profile, settings, candidate, list(asked))
        problems += [Problem(problem=text, where=at, fix=fix) for text, fix in wrong]
        if problems:
            raise ConfigError.of(problems)
        if settings.sampler == "nsga" and len(objectives) < 2:
            raise ConfigError("nsga serves several objectives", where=at, fix="name two in search.objectives")
        made = cls(
            profile=profile,
            settings=settings,
            target=target,
            candidate=candidate,
            objectives=objectives,
            limits=limits,
        )
        at_rungs = {"accuracy", "validation_accuracy", "f1"}
        if (
            settings.halving is not None
            and settings.halving.on is None
            and not at_rungs & {o.metric for o in objectives}
        ):
            raise ConfigError(
                "halving goes by what training makes better, and no objective is such",
                where=at,
                fix="write halving: {on: accuracy}, or leave halving out",
            )
        made.check_axes()
        return made

    # --- samples ----------------------------------------------------------------------------------------

    def document(self) -> Document:
        """The profile as read and overridden, to be changed."""
        document = parse(self.profile.text, self.profile.path)
        document.value = copy.deepcopy(self.profile.value)
        return document

    def changed(self, sample: Sample) -> PipelineProfile:
        """The profile with the values of a sample; keys of closed axes are taken out of it.

        Those that wait for the choice of another candidate stay: they belong to one that is not tried.

        Raises:
            ConfigError: the values are not legal there.
        """
        document = self.document()
        self._set(document, sample)
        whole: Any = document.value
        whole.pop("search", None)  # of the profile; a version of it has no axes of its own
        text = f"{self.profile.text}\n# search: {canonical_json(dict(sample))}"
        changed = profiles.checked(document, text)
        name = str(sample.get(CANDIDATE, self.candidate))
        return self.narrowed(changed, [name])

    def narrowed(self, profile: PipelineProfile, candidates: Sequence[str]) -> PipelineProfile:
        """A profile with some candidates, their teachers, and the search's target and limits only."""
        return replace(
            profile,
            candidates=with_teachers(profile, candidates),
            targets=tuple(t for t in profile.targets if t.name == self.target),
            requirements=self.limits,
        )

    def _set(self, document: Document, sample: Sample) -> None:
        for name in self.settings.ordered():
            if name == CANDIDATE:
                continue
            if name in sample:
                profiles.put(document, name, copy.deepcopy(sample[name]), _BY)
            elif self.settings.space[name].when and not self._of_another(name, sample):
                profiles.drop(document, name, _BY)

    def _of_another(self, name: str, sample: Sample) -> bool:
        """Whether an axis belongs to a candidate that is not tried."""
        wanted = self.settings.space[name].when.get(CANDIDATE)
        values = wanted if isinstance(wanted, list) else [wanted]
        return wanted is not None and sample.get(CANDIDATE, self.candidate) not in values

    def of_job(self, job: Job, samples: int) -> tuple[PipelineProfile, PipelineProfile, str]:
        """The profiles of a job and of the float model that it is compared with, and the candidate's name.

        Args:
            samples: of the whole training split.
        """
        seen = self.settings.validation
        holdout = Holdout(fold=job.fold, folds=seen.folds, seed=self.settings.seed)
        changed = replace(self.changed(job.sample), holdout=holdout)
        changed = replace(changed, seed=changed.seed + job.seed)
        reference = replace(self.profile, holdout=holdout)
        if not job.trained:
            changed, reference = untrained(changed), untrained(reference)
        elif job.share < 1:
            changed = shortened(changed, job.share, samples - samples // seen.folds)
        return changed, reference, str(job.sample.get(CANDIDATE, self.candidate))

    def written(self, sample: Sample) -> Any:
        """The profile of a sample as plain values, without the search."""
        document = self.document()
        self._set(document, sample)
        value: Any = document.value
        tried = self.changed(sample)
        value["candidates"] = {c.name: value["candidates"][c.name] for c in tried.candidates}
        value["requirements"] = [
            one for one in value.get("requirements") or [] if one.get("target") in {None, self.target}
        ]
        value["targets"] = [
            str(self.profile.path.resolve().parent / t) if str(t).endswith((".yaml", ".yml")) else t
            for t in value["targets"]
            if t == self.target or str(t).endswith((".yaml", ".yml"))
        ]
        # Paths start at the profile's folder, and this is written into another one.
        for section, options in (("data", tried.data.options), ("model", tried.model.options)):
            for key, given in options.items():
                if isinstance(given, str) and Path(given).is_absolute() and key in value[section]:
                    value[section][key] = given
        name = called = str(sample.get(CANDIDATE, self.candidate))
        if self.settings.restarts > 1:
            again = restarted(tried, name, self.settings.restarts)
            first = next(c for c in again.candidates if c.chain and c.chain[0].stage == "ensemble").chain[0]
            chain = value["candidates"].pop(name)
            if isinstance(chain, dict):  # {recipe: auto, …}
                chain = [{chain["recipe"]: {k: v for k, v in chain.items() if k != "recipe"}}]
            called = best_of(name, chain, self.settings.restarts)
            value["candidates"][called] = [
                {first.stage: first.config.model_dump(mode="json", exclude_unset=True)},
                *chain,
            ]
        value["ship"] = called  # its teachers and the float model do not pass in its place
        return {k: v for k, v in value.items() if k != "search"}

    def defaults(self) -> Sample:
        """What the profile itself says, of the axes where it says something that the axis may take."""
        document, found = self.document(), dict[str, JSON]()
        for name in self.settings.ordered():
            if not self.settings.is_open(name, found):
                continue
            there, value = (True, self.candidate) if name == CANDIDATE else profiles.look(document, name)
            if not there:
                there, value = default_of(self.profile, name)
            axis = self.settings.space[name]
            if there and axis.holds(value):
                # The axis's own of equal values: 0 and 0.0 are one version.
                found[name] = next((v for v in axis.one_of or () if v == value), value)
        return found

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the candidates that are searched."""
        axis = self.settings.space.get(CANDIDATE)
        return (self.candidate,) if axis is None else tuple(str(v) for v in axis.one_of or ())

    def check_axes(self) -> None:
        """ConfigError where an axis names a key that no profile has, or a value that it cannot take.

        One axis at a time is set to each of its choices, or to its ends; conditions are met on the way.
        """
        problems: dict[str, Problem] = {}
        base = self.defaults()
        for name, axis in self.settings.space.items():
            if name.partition(".")[0] in {"search", "requirements", "targets", "name", "data", "ship"}:
                text = f"search.space: {name} is what the search is about, and cannot be searched itself"
                problems[name] = Problem(
                    problem=text, where=self.profile.where("search"), fix="remove the axis"
                )
                continue
            values = list(axis.one_of) if axis.one_of is not None else list(axis.ends)
            reasons = list[Problem]()  # one for each value that is not legal
            for value in values:
                sample = self._with(base, name, value)
                try:
                    self.changed(sample)
                except ConfigError as error:
                    reasons.append(error.problems[0])
            if reasons and len(reasons) == len(values):  # not one value is legal: the axis is wrong
                text = f"search.space: {name} cannot be set: {reasons[0].problem}"
                problems[name] = Problem(problem=text, where=self.profile.where("search"), fix=reasons[0].fix)
        if problems:
            raise ConfigError.of(list(problems.values()))

    def _with(self, base: Sample, name: str, value: JSON) -> dict[str, JSON]:
        """A sample in which an axis has a value, and those that it depends on let it."""
        sample = {**base, name: value}
        for parent, wanted in self.settings.space[name].when.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if sample.get(parent) not in allowed:
                sample = self._with(sample, parent, allowed[0])
        return {n: v for n, v in sample.items() if self.settings.is_open(n, sample)}

    def structure(self, sample: Sample) -> str | None:
        """What is known without training depends on this alone; None where nothing of it is asked for."""
        if not self.metrics(trained=False):
            return None
        fresh = untrained(self.changed(sample))
        chains: list[JSON] = [
            [{link.stage: link.config.to_json()} for link in c.chain]
            for c in fresh.candidates
            if c.name == sample.get(CANDIDATE, self.candidate)
        ]
        return digest_of(
            {
                "model": fresh.model.to_json(),
                "source": {fresh.source.stage: fresh.source.config.to_json()},
                "chains": chains,
                "benchmark": fresh.benchmark.to_json(),
                "estimate": fresh.estimate.to_json(),
            }
        )

    def machine(self) -> str:
        """What a machine must be to work for the search: of the target's kind.

        Its times and its arithmetic are part of what is found.
        """
        target = next(t for t in self.profile.targets if t.name == self.target)
        return host_tag() if target.name == HOST_CPU else target.name

    # --- limits and objectives --------------------------------------------------------------------------

    def metrics(self, *, trained: bool) -> set[str]:
        """What a job has to find out."""
        wanted = {str(o.metric) for o in self.objectives} | {str(r.metric) for r in self.limits}
        if trained and self.settings.halving is not None:
            wanted.add(self.rung_metric)
        if wanted & STRUCTURAL:
            wanted.add("file_bytes")  # of two as fast, the smaller is shipped
        return wanted if trained else wanted & STRUCTURAL

    @property
    def rung_metric(self) -> str:
        """What halving goes by."""
        chosen = self.settings.halving.on if self.settings.halving is not None else None
        known = [o.metric for o in self.objectives if o.metric in {"accuracy", "validation_accuracy", "f1"}]
        return chosen or (known[0] if known else "accuracy")

    def excesses(self, values: Mapping[str, Value]) -> dict[str, float]:
        """How far each limit is missed, of those that are known."""
        found = {str(r): excess(r, values.get(r.metric)) for r in self.limits}
        return {name: e for name, e in found.items() if e is not None}

    @property
    def digest(self) -> str:
        """Of what must be the same on every machine, and after a resume: all but how long is searched."""
        open_ends = {"trials", "seconds", "stop", "restarts"}
        settings = {k: v for k, v in self.settings.to_json().items() if k not in open_ends}
        document = self.document()
        value: Any = document.value
        rest = {k: v for k, v in value.items() if k not in {"search", "release", "track", "compare"}}
        device = next(t.hardware for t in self.profile.targets if t.name == self.target)
        files: dict[str, JSON] = {  # what stands in other files: the device, and a model that is read
            "device": None if device is None else device.to_json(),
            "model_file": getattr(self.profile.source.config, "digest", None),
        }
        return digest_of({"search": settings, "profile": rest, **files})


def host_tag() -> str:
    """This machine, as a kind: its hardware profile and its CPU."""
    device = host_profile()
    return f"{HOST_CPU}: {device.name if device else platform.machine()}, {this_host.detect().cpu}"


def default_of(profile: PipelineProfile, name: str) -> tuple[bool, JSON]:
    """The value of a key that the profile does not write out, from the settings it was checked into."""
    head, *rest = profiles.parts_of(name)
    sections: dict[str, Any] = {
        "seed": profile.seed,
        "threads": profile.threads,
        "train": profile.source.config,
        "benchmark": profile.benchmark,
        "estimate": profile.estimate,
    }
    value: Any = sections.get(head)
    above: Any = None
    if head == "model":
        value = dict(profile.model.options)
    if head == "candidates" and len(rest) >= 3:
        name, place, stage, *rest = rest
        chain = next((c.chain for c in profile.candidates if c.name == name), ())
        there = str(place).isdigit() and int(place) < len(chain) and chain[int(place)].stage == stage
        value = chain[int(place)].config if there else None
    for part in rest:
        if value is None:
            return False, None
        above = value
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    if value is None and rest[-1:] == ["lr"]:
        value = getattr(above, "rate", None)  # the optimizer's own
    plain = isinstance(value, bool | int | float | str | list)
    return plain, value if plain else None


def written(subject: Subject, sample: Sample, path: Path) -> str:
    """The winner's profile as YAML that stands by itself, without the search."""
    import yaml

    value = subject.written(sample)
    return f"# Found by hwopt search in {path.name}.\n" + str(
        yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    )
