"""Cross candidates with targets into a graph of steps; equal steps merge.

Pure but for the digests of the user's own code: what is here (host, backends, data) comes in as values.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from hwopt.core.artifact import Kind
from hwopt.core.backend import BackendSpec, Hint, Optimization
from hwopt.core.canonical import JSON, digest_of
from hwopt.core.choices import NoOptions
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.plan import Plan, Row, Source, Step
from hwopt.core.profile import Candidate, Link, PipelineProfile, Target
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, timing_of
from hwopt.errors import ConfigError, Problem
from hwopt.planning.availability import AUTO, Available, World, available
from hwopt.plugins import did_you_mean, installed_version, provider_version, resolve, table

IMPLICIT_BASELINE: Final = "fp32"
EMULATION: Final = "fpga-emulation"  # the runtime of what is designed and not built


def plan(
    profile: PipelineProfile, world: World, reference: tuple[PipelineProfile, World] | None = None
) -> Plan:
    """Steps in order and the rows they fill; ConfigError with every problem of the profile.

    Args:
        reference: another profile whose float model the versions are compared with, instead of their own.
    """
    builder = _Builder(profile, world)
    problems = builder.problems()
    if problems:
        raise ConfigError.of(problems)
    if reference is not None:
        builder.compare_with(_Builder(*reference))
    return builder.build()


class _Builder:
    def __init__(self, profile: PipelineProfile, world: World) -> None:
        self.profile, self.world = profile, world
        self.steps: dict[str, Step] = {}
        self.rows: list[Row] = []
        floats = [c for c in profile.candidates if not c.chain]
        self.baseline = floats[0] if floats else Candidate(name=IMPLICIT_BASELINE, chain=(), where=None)
        self.candidates = profile.candidates if floats else (self.baseline, *profile.candidates)
        asked, among = (getattr(profile.benchmark, name, None) for name in ("runtime", "among"))
        self.float_export: Source | None = None  # of the reference, where it is another profile's
        self.targets = {t.name: available(t, world, asked, among or ()) for t in profile.targets}

    # --- checks -----------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Everything wrong that can be known before a step runs; each said once."""
        found: dict[tuple[str, str | None], Problem] = {}
        if self.baseline.where is None:
            for candidate in self.profile.candidates:
                if candidate.name == self.baseline.name:
                    problem = Problem(
                        problem=f"{candidate.name!r} names the float baseline, and here it is a chain",
                        where=candidate.where,
                        fix="rename the candidate, or add a float one: float: []",
                    )
                    found[(problem.problem, problem.where)] = problem
        runtime = getattr(self.profile.benchmark, "runtime", None)
        named = getattr(self.profile.benchmark, "among", ())
        for name in {runtime, *named} - {None, AUTO, *table("backend")}:
            problem = Problem(
                problem=f"unknown runtime {name!r}",
                where=self.profile.where("benchmark"),
                fix=did_you_mean(name, table("backend")),
            )
            found[(problem.problem, problem.where)] = problem
        if named and runtime != AUTO:
            problem = Problem(
                problem="benchmark.among lists runtimes to choose from, and benchmark.runtime does not say auto",
                where=self.profile.where("benchmark"),
                fix="write runtime: auto, or leave out among",
            )
            found[(problem.problem, problem.where)] = problem
        for candidate in self.candidates:
            kind = resolve("stage", self.profile.source.stage).produces["checkpoint"]
            held = float(getattr(self.profile.source.config, "validation_share", 1.0))
            for link in candidate.chain:
                spec: StageSpec = resolve("stage", link.stage)
                if kind not in spec.consumes["checkpoint"]:
                    problem = Problem(
                        problem=f"{link.stage} cannot follow a step that gives a {kind.value}",
                        where=link.where,
                        fix="an ONNX model can be quantized, and no more"
                        if kind is Kind.ONNX
                        else "prune and fine-tune first, quantize last",
                    )
                    found[(problem.problem, problem.where)] = problem
                for text, fix in spec.check_input(link.config, kind):
                    found[(text, link.where)] = Problem(problem=text, where=link.where, fix=fix)
                asked = getattr(getattr(link.config, "timing", None), "runtime", None)
                if asked is not None and asked not in table("backend"):
                    text = f"unknown runtime {asked!r}"
                    fix = did_you_mean(asked, table("backend"))
                    found[(text, link.where)] = Problem(problem=text, where=link.where, fix=fix)
                if spec.members(link.config) > 1 and link is not candidate.chain[0]:
                    text = f"{link.stage} takes the float model from several seeds, and stands behind another step"
                    problem = Problem(problem=text, where=link.where, fix="put it first in the chain")
                    found[(text, link.where)] = problem
                for text, fix in self.member_problems(spec, link) + choosing_problems(
                    spec, link.config, held
                ):
                    found[(text, link.where)] = Problem(problem=text, where=link.where, fix=fix)
                own = spec.holds_back(link.config)
                held = held if own is None else min(held, own)
                for text, fix in self.teacher_problems(candidate, link):
                    found[(text, link.where)] = Problem(problem=text, where=link.where, fix=fix)
                kind = spec.produces["checkpoint"]
                for target in self.profile.targets:
                    hardware = target.hardware or self.world.host_profile
                    for text, fix in spec.check(link.config, hardware) if hardware else []:
                        found[(text, link.where)] = Problem(problem=text, where=link.where, fix=fix)
        filled = {"runtime", "threads", "spinning"} & self.profile.inspect.model_fields_set
        if filled:
            text = f"inspect.{min(filled)} is that of the benchmark, and is not set apart"
            where = self.profile.where("inspect")
            fix = f"set benchmark.{min(filled)}, and leave it out here"
            found[(text, where)] = Problem(problem=text, where=where, fix=fix)
        estimate: StageSpec = resolve("stage", "estimate")
        for target in self.profile.targets:
            for text, fix in estimate.check(self.profile.estimate, target.hardware):
                where = self.profile.where("estimate")
                found[(text, where)] = Problem(problem=text, where=where, fix=fix)
        return list(found.values())

    def member_problems(self, spec: StageSpec, link: Link) -> list[tuple[str, str]]:
        """What several trainings of the float model cannot be made of."""
        if spec.members(link.config) == 1:
            return []
        source: Any = self.profile.source.config
        if not hasattr(source, "restart"):
            return [
                (f"{link.stage} trains several times, and the model is an ONNX file", "name a torch model")
            ]
        held = getattr(source, "validation_share", None)  # None: nothing is trained
        share = getattr(link.config, "validation_share", held)
        if held is not None and share != held:
            return [
                (
                    f"{link.stage} compares on {share:g} of the training split, and train holds back {held:g}",
                    "give both the same validation_share",
                )
            ]
        return []

    def teacher_problems(self, candidate: Candidate, link: Link) -> list[tuple[str, str]]:
        """A teacher that is no candidate, or that learns from its own student."""
        name = getattr(getattr(link.config, "distill", None), "teacher", None)
        if name is None:
            return []
        names = [c.name for c in self.candidates]
        if name not in names:
            return [(f"the teacher {name!r} is no candidate of this profile", did_you_mean(name, names))]
        waiting, seen = [name], set[str]()
        while waiting:
            current = waiting.pop()
            if current == candidate.name:
                return [(f"{candidate.name!r} and its teacher {name!r} wait for each other", "name another")]
            if current not in seen:
                seen.add(current)
                chain = next((c.chain for c in self.candidates if c.name == current), ())
                teachers = (getattr(getattr(one.config, "distill", None), "teacher", None) for one in chain)
                waiting += [teacher for teacher in teachers if teacher]
        return []

    def outside_plugins(self, spec: StageSpec, config: Settings) -> list[JSON]:
        """Versions of the packages outside hwopt that take part in a step."""
        names = [("stage", spec.name)]
        if self.profile.model.name is not None:
            names.append(("model", self.profile.model.name))
        for part in (config, *(value for _, value in config if isinstance(value, Settings))):
            for kind in ("optimizer", "schedule"):
                chosen = getattr(getattr(part, kind, None), "name", None)
                if chosen is not None:
                    names.append((kind, chosen))
        versions = [provider_version(kind, name) for kind, name in names if ":" not in name]
        optimizers = [n for kind, n in names if kind == "optimizer"]
        if any(":" in n or resolve("optimizer", n).extra for n in optimizers):
            versions.append(installed_version("pytorch-optimizer"))
        return [version for version in versions if version is not None]

    def compare_with(self, other: _Builder) -> None:
        """Take the float model of another profile as the one that all are compared with."""
        self.float_export = other.export(other.trained(), "the reference", hardware=None)
        self.steps = other.steps

    # --- steps ------------------------------------------------------------------------------------------

    def build(self) -> Plan:
        """All rows; targets that are not available cost no step."""
        for target in self.profile.targets:
            for candidate in self.candidates:
                self.rows.append(self.row(candidate, target))
        return Plan(steps=tuple(self.steps.values()), rows=tuple(self.rows))

    def row(self, candidate: Candidate, target: Target) -> Row:
        here = self.targets[target.name]
        hardware = here.hardware
        row = Row(
            candidate=candidate.name,
            target=target.name,
            is_float=candidate is self.baseline,
            hardware=hardware.name if hardware else "unknown",
            notes=here.notes,
        )
        if here.unavailable is not None or hardware is None:
            return replace(row, unavailable=here.unavailable, fix=here.fix)
        quantized = any(
            resolve("stage", link.stage).produces["checkpoint"] is Kind.QUANTIZED_CHECKPOINT
            for link in candidate.chain
        )
        if hardware.kind is DeviceKind.FPGA and not quantized:
            return replace(
                row,
                unavailable=f"{hardware.name} computes with integers; a float model has no design there",
                fix="add a quantize step to the candidate",
                applicable=False,
            )
        row = replace(row, quantized=quantized)
        timed = [link for link in self.links(candidate) if resolve("stage", link.stage).times(link.config)]
        if timed and not here.latency:
            return replace(
                row,
                unavailable=f"{timed[0].stage} times models, and {here.notes['latency_ms']}",
                fix="run the pipeline on such a device, or give the goal in macs",
            )
        float_export = self.float_export or self.export(self.trained(), "float", hardware=None)
        checkpoint, steps = self.chained(candidate, target)
        model = (
            self.export(self.trained(), "float", hardware=None)
            if candidate is self.baseline
            else self.export(checkpoint, candidate.name, hardware)
        )
        steps.append(self.steps[model.step])
        twins = {
            "twin": Source(step=model.step, port="twin"),
            "float_twin": Source(step=float_export.step, port="twin"),
        }
        emulated = hardware.kind is DeviceKind.FPGA
        place = f"{candidate.name} on {target.name}"
        evaluations: dict[str, str] = {}
        for runtime in here.among or (EMULATION if emulated else here.runtime or "",):
            evaluate = self.evaluate_config(candidate, runtime, emulated, here)
            label = f"evaluate {place}" + (f" in {runtime}" if here.among else "")
            sources = {"model": model, **twins}
            done = self.add("evaluate", label, evaluate, hardware, sources, target.where)
            steps.append(self.steps[done.step])
            evaluations[runtime] = done.step
        if here.among:
            row = replace(row, evaluations=evaluations)
        if emulated:
            wish = self.profile.estimate
            done = self.add("estimate", f"estimate {place}", wish, hardware, {"model": model}, target.where)
            steps.append(self.steps[done.step])
        elif here.latency:
            several = here.among if len(here.among) > 1 else ()
            chosen = {"runtime": AUTO if several else here.runtime, "among": several}
            benchmark = self.profile.benchmark.model_copy(update=chosen)
            done = self.add(
                "benchmark",
                f"benchmark {place}",
                benchmark,
                hardware,
                {"model": model, "baseline": float_export},
                target.where,
            )
            steps.append(self.steps[done.step])
        wish = self.profile.inspect.model_copy(
            update={
                "runtime": None if emulated else here.runtime,
                "threads": getattr(self.profile.benchmark, "threads", 1),
                "spinning": getattr(self.profile.benchmark, "spinning", False),
            }
        )
        done = self.add("inspect", f"inspect {place}", wish, hardware, {"model": model}, target.where)
        steps.append(self.steps[done.step])
        return replace(row, steps=tuple(dict.fromkeys(step.key for step in steps)))

    def evaluate_config(
        self, candidate: Candidate, runtime: str, emulated: bool, here: Available
    ) -> Settings:
        """The same recipe as the benchmark's: accuracy and latency are those of one execution."""
        spec: StageSpec = resolve("stage", "evaluate")
        allowed = any(getattr(link.config, "allow_float", False) for link in candidate.chain)
        return spec.config.model_validate(
            {
                "runtime": runtime,
                "optimization": Optimization.NONE if emulated else Optimization.ALL,
                "threads": getattr(self.profile.benchmark, "threads", 1),
                "spinning": getattr(self.profile.benchmark, "spinning", False),
                "hint": Hint(getattr(self.profile.benchmark, "hint", Hint.LATENCY)),
                # The file is made for the device's first runtime; another may run parts of it in float, which
                # the report then says.
                "allow_float": allowed or (runtime != here.runtime and not emulated),
            }
        )

    def chained(self, candidate: Candidate, target: Target) -> tuple[Source, list[Step]]:
        """The steps of a candidate's chain, and what the last of them gives."""
        here, steps = self.targets[target.name], list[Step]()
        checkpoint = self.trained()
        for link in candidate.chain:
            spec: StageSpec = resolve("stage", link.stage)
            inputs = {"checkpoint": checkpoint}
            if spec.wants_source(link.config):
                inputs["source"] = self.trained()
                teacher = self.teacher(link)
                if teacher is not None:
                    inputs["teacher"] = self.chained(teacher, target)[0]
            source = self.profile.source
            for number in range(1, spec.members(link.config)):
                restart = getattr(source.config, "restart", 0) + number
                again = replace(source, config=source.config.model_copy(update={"restart": restart}))
                inputs[f"member{number}"] = self.link(
                    again, f"{source.stage} the float model, restart {number}"
                )
            config = link.config
            if spec.times(config) or getattr(config, "estimated", False):  # estimates need the batch
                timing: Any = getattr(config, "timing", None)
                filled = timing_of(timing, self.profile.benchmark, here.runtime)
                config = config.model_copy(update={"timing": filled})
            label = f"{link.stage} for {candidate.name}"
            checkpoint = self.add(link.stage, label, config, here.hardware, inputs, link.where)
            steps.append(self.steps[checkpoint.step])
        return checkpoint, steps

    def links(self, candidate: Candidate) -> list[Link]:
        """The links of a candidate and of the teachers on its way."""
        found = list(candidate.chain)
        for link in candidate.chain:
            teacher = self.teacher(link)
            found += self.links(teacher) if teacher is not None else []
        return found

    def teacher(self, link: Link) -> Candidate | None:
        """The candidate that a link's settings name as the teacher; None for the float model."""
        name = getattr(getattr(link.config, "distill", None), "teacher", None)
        return next((c for c in self.candidates if c.name == name), None) if name else None

    def trained(self) -> Source:
        return self.link(self.profile.source, f"{self.profile.source.stage} the float model")

    def link(self, link: Link, label: str) -> Source:
        return self.add(link.stage, label, link.config, None, {}, link.where)

    def export(self, checkpoint: Source, name: str, hardware: HardwareProfile | None) -> Source:
        return self.add("export", f"export {name}", NoOptions(), hardware, {"checkpoint": checkpoint}, None)

    def add(
        self,
        stage: str,
        label: str,
        config: Settings,
        hardware: HardwareProfile | None,
        inputs: Mapping[str, Source],
        where: str | None,
    ) -> Source:
        """A step, or the equal one that is already there; the source of its first output."""
        spec: StageSpec = resolve("stage", stage)
        basis = self.basis(spec, config, hardware, inputs)
        key = digest_of(basis)
        if key not in self.steps:
            self.steps[key] = Step(
                key=key,
                stage=stage,
                label=label,
                config=config,
                hardware=hardware,
                inputs=inputs,
                where=where,
                model=self.profile.model,
                threads=self.profile.threads or 1,
                basis=basis,
            )
        return Source(step=key, port=next(iter(spec.produces)))

    def basis(
        self,
        spec: StageSpec,
        config: Settings,
        hardware: HardwareProfile | None,
        inputs: Mapping[str, Source],
    ) -> dict[str, JSON]:
        """All that the step's result depends on; its digest is the step's key."""
        facts: dict[str, JSON] = {
            "stage": spec.name,
            "version": spec.version,
            "config": config.to_json(),
            "hardware": spec.facet(hardware) if hardware else {},
            "seed": self.profile.seed,
            "inputs": {port: [source.step, source.port] for port, source in inputs.items()},
            "libraries": {name: _version(name) for name in ("hwopt", "numpy", *spec.libraries)},
            "plugins": self.outside_plugins(spec, config),
        }
        if not inputs:
            facts["model"] = self.profile.model.to_json()
        facts["model_code"] = self.world.model_code
        if spec.reads_data:
            facts["data"] = self.world.data_fingerprint
        timed = spec.times(config)
        if spec.measured or timed:
            facts["host"] = self.world.host.to_json()
            runtime: Any = getattr(getattr(config, "timing", config), "runtime", None)
            names = getattr(config, "among", ()) or ((runtime,) if runtime else ())
            backends: list[BackendSpec] = [resolve("backend", name) for name in names]
            facts["runtime_libraries"] = {n: _version(n) for b in backends for n in b.libraries}
            facts["device"] = [self.world.probe(name).device for name in names]
        if not spec.measured:
            facts["threads"] = self.profile.threads
        return facts


@cache  # reading a package's metadata costs a millisecond, and a plan asks dozens of times
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def choosing_problems(spec: StageSpec, config: Settings, held: float) -> list[tuple[str, str]]:
    """Samples that a step chooses on, and that its network has learnt: all splits begin alike.

    Args:
        held: the least share of the training split that the network's trainings before left out.
    """
    asked = spec.holds_back(config)
    if not spec.chooses or asked is None or asked <= held:
        return []
    text = (
        f"{spec.name} chooses on {asked:g} of the training split, of which {held:g} were held back before: "
        "the rest it has learnt"
    )
    fix = f"set validation_share: {asked:g} in every training before, train among them"
    return [(text, fix + (f", or its own to {held:g}" if held > 0 else ""))]
