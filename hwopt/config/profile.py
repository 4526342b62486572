"""A pipeline profile: YAML text to a ``PipelineProfile``, every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from hwopt.config import hardware as hardware_profiles
from hwopt.config.architecture import WIDTH_DEPTH, spread
from hwopt.config.problems import validate
from hwopt.config.yaml_text import Document, KeyPath, parse, parse_scalar, read_text
from hwopt.core.canonical import JSON, digest_of_file
from hwopt.core.choices import Choice, DataSource, ModelSpec
from hwopt.core.profile import (
    HOST_CPU,
    Candidate,
    Link,
    PipelineProfile,
    Release,
    Requirement,
    RunLimits,
    Target,
)
from hwopt.core.search import SearchSettings
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec
from hwopt.errors import ConfigError, HwoptError, Problem
from hwopt.plugins import did_you_mean, resolve, table
from hwopt.tracking.sink import SinkSpec
from hwopt.training.race_settings import RaceSettings

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FACTORY: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Head(Settings):
    """The top level; sections are checked one by one against what they name."""

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    ship: str | None = None
    data: object
    model: object
    train: object = {}
    benchmark: object = {}
    estimate: object = {}
    inspect: object = {}
    release: object = {}
    candidates: object
    targets: object
    requirements: object = ()
    track: object = ()
    limits: object = {}
    compare: object = None
    search: object = None


def load(path: Path, overrides: Sequence[str] = ()) -> PipelineProfile:
    """Read, override (``a.b=value``) and check a profile; ConfigError carries every problem."""
    text = read_text(path)
    document = parse(text, path)
    if isinstance(document.value, dict) and document.value.get("search") == WIDTH_DEPTH:
        document.value["search"] = {"space": {WIDTH_DEPTH: True}}  # the short form, as overrides know it
    for override in overrides:
        _override(document, override)
        text += f"\n# --set {override}"
    return checked(document, text)


def checked(document: Document, text: str) -> PipelineProfile:
    """A parsed profile, possibly changed; ConfigError carries every problem."""
    path = document.path
    problems: list[Problem] = []
    head = validate(Head, document.value, document, (), problems)
    value = document.value if isinstance(document.value, dict) else {}
    # Sections are looked at even when the head is wrong, so that one run shows all there is to mend.
    reader = _Reader(document, problems)
    data = reader.choice("data", value.get("data")) if "data" in value else None
    given = value.get("model")
    if isinstance(given, dict) and "onnx" in given:
        model, source = reader.onnx_model(given, "train" in value)
    else:
        model = reader.choice("model", value.get("model")) if "model" in value else None
        source = reader.section("train", value.get("train", {}))
    benchmark = reader.section("benchmark", value.get("benchmark", {}))
    estimate = reader.section("estimate", value.get("estimate", {}))
    inspect = reader.section("inspect", value.get("inspect", {}))
    release = validate(Release, value.get("release", {}), document, ("release",), problems)
    candidates = reader.candidates(value["candidates"]) if "candidates" in value else ()
    if head is not None and head.ship is not None and head.ship not in {c.name for c in candidates}:
        fix = did_you_mean(head.ship, [c.name for c in candidates])
        reader.complain(f"ship names {head.ship!r}, which is no candidate", ("ship",), fix)
    targets = reader.targets(value["targets"]) if "targets" in value else ()
    requirements = reader.requirements(value.get("requirements", []), targets)
    track = reader.trackers(value.get("track", []))
    limits = validate(RunLimits, value.get("limits", {}), document, ("limits",), problems)
    race = None
    if value.get("compare") is not None:
        race = validate(RaceSettings, value["compare"], document, ("compare",), problems)
    search = None
    if value.get("search") is not None:
        given = spread(value["search"], model, document, problems)
        if given is not None:
            search = validate(SearchSettings, given, document, ("search",), problems)
    if problems or head is None or data is None or model is None or source is None or benchmark is None:
        raise ConfigError.of(problems)
    if estimate is None or limits is None or inspect is None or release is None:
        raise ConfigError.of(problems)
    return PipelineProfile(
        path=path,
        name=head.name,
        seed=head.seed,
        threads=head.threads,
        ship=head.ship,
        data=data,
        data_where=document.where(("data",), key=True),
        model=model,
        model_where=document.where(("model",), key=True),
        source=source,
        benchmark=benchmark.config,
        estimate=estimate.config,
        inspect=inspect.config,
        release=release,
        candidates=candidates,
        targets=targets,
        requirements=requirements,
        value=document.value,
        text=text,
        where=lambda section: document.where((section,), key=True),
        limits=limits,
        track=track,
        compare=race,
        search=search,
    )


def _override(document: Document, override: str) -> None:
    """Apply ``a.b=value`` to the parsed document; its place is then the command line."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"{override!r} is not an override", where="--set", fix="write --set section.key=value"
        )
    value = parse_scalar(text)
    if isinstance(value, str) and ("/" in value or os.sep in value) and _exists(Path(value)):
        value = str(Path(value).resolve())  # a path typed at a prompt starts at the current folder
    put(document, key, value, "--set")


def parts_of(key: str) -> tuple[str, ...]:
    """The parts of ``a.b.c``; one that has dots itself stands in double quotes: ``rules."4.conv".weights``."""
    found = re.findall(r'"([^"]*)"|([^."]+)', key)
    return tuple(quoted or plain for quoted, plain in found)


def put(document: Document, key: str, value: JSON, by: str) -> None:
    """Set ``a.b`` or ``a.0.b`` in a parsed profile; mappings on the way are made.

    Args:
        by: who changes it, for messages.
    Raises:
        ConfigError: the path leads through something that is neither a mapping nor a list.
    """
    node, last = _parent(document, key, by, make=True)
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    document.overridden[parts_of(key)] = by


def drop(document: Document, key: str, by: str) -> None:
    """Remove a key, where it stands."""
    try:
        node, last = _parent(document, key, by, make=False)
    except ConfigError:
        return
    if isinstance(node, dict):
        node.pop(last, None)


def look(document: Document, key: str) -> tuple[bool, JSON]:
    """Whether a key stands in the profile, and its value."""
    try:
        node, last = _parent(document, key, "", make=False)
    except ConfigError:
        return False, None
    if isinstance(node, list):
        return True, node[int(last)]
    return (last in node, node.get(last))


def _parent(document: Document, key: str, by: str, *, make: bool) -> tuple[Any, str]:
    """What holds the last part of a path, and that part."""
    *before, last = parts_of(key) or ("",)
    node: Any = document.value
    for index, part in enumerate([*before, last]):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                text = f"{key!r}: {part!r} is no place in a list of {len(node)}"
                raise ConfigError(text, where=by, fix="places are counted from 0")
        elif not isinstance(node, dict):
            raise ConfigError(
                f"{key!r}: {part!r} lies below something that is no mapping",
                where=by,
                fix=f"write {'.'.join(parts_of(key)[:index]) or 'the profile'} as a mapping in the profile",
            )
        if index == len(before):
            break
        if isinstance(node, list):
            node = node[int(part)]
        else:
            if part not in node and not make:
                raise ConfigError(f"{key!r}: there is no {part!r}", where=by)
            if node.get(part) is None and make:
                node[part] = {}
            node = node[part]
    return node, last


def _exists(path: Path) -> bool:
    """Whether something is there; text that cannot be a path is nowhere."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Reader:
    """Reads sections, collecting problems."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems
        self.base = document.path.resolve().parent

    def complain(self, problem: str, at: KeyPath, fix: str | None = None, *, key: bool = False) -> None:
        self.problems.append(Problem(problem=problem, where=self.document.where(at, key=key), fix=fix))

    def absorb(self, error: HwoptError, at: KeyPath) -> None:
        """An error raised below, placed here unless it knows a better place."""
        self.problems.extend(error.at(self.document.where(at)).problems)

    def choice(self, kind: str, value: JSON) -> Choice | None:
        """``{name: …}`` or ``{factory: "module:function"}`` with options."""
        if not isinstance(value, dict):
            self.complain(
                f"{kind} is {value!r}, expected a mapping", (kind,), f"write {kind}: {{name: …}}", key=True
            )
            return None
        options = dict(value)
        name, factory = options.pop("name", None), options.pop("factory", None)
        if (name is None) == (factory is None):
            self.complain(
                f"{kind} needs exactly one of `name` and `factory`",
                (kind,),
                f'names: {", ".join(sorted(table(kind)))}; or factory: "module:function"'
                + ("; or onnx: FILE" if kind == "model" else ""),
                key=True,
            )
            return None
        if factory is not None:
            if not isinstance(factory, str) or not _FACTORY.fullmatch(factory):
                self.complain(
                    f"{kind}.factory is {factory!r}", (kind, "factory"), 'write factory: "module:function"'
                )
                return None
            return Choice(name=None, factory=factory, options=options)
        if not isinstance(name, str):
            self.complain(f"{kind}.name is {name!r}, expected text", (kind, "name"))
            return None
        try:
            spec: DataSource | ModelSpec = resolve(kind, name)
        except ConfigError as error:
            self.absorb(error, (kind, "name"))
            return None
        if isinstance(spec, DataSource):
            for field in spec.paths:
                given = options.get(field)
                if isinstance(given, str):
                    options[field] = self.path(given, (kind, field))
        settings = validate(spec.settings, options, self.document, (kind,), self.problems)
        return None if settings is None else Choice(name=name, factory=None, options=settings.to_json())

    def onnx_model(self, value: dict[str, JSON], has_train: bool) -> tuple[Choice | None, Link | None]:
        """``{onnx: FILE}``: a float model with no torch source, and the step that reads it."""
        if has_train:
            self.complain("an ONNX model is not trained", ("train",), "remove the section train", key=True)
        options = dict(value)
        if isinstance(options["onnx"], str):
            options["onnx"] = self.path(options["onnx"], ("model", "onnx"))
            if Path(options["onnx"]).is_file():
                options["digest"] = digest_of_file(Path(options["onnx"]))
        spec: StageSpec = resolve("stage", "read")
        config = validate(spec.config, options, self.document, ("model",), self.problems)
        if config is None:
            return None, None
        choice = Choice(name=None, factory=None, options={"onnx": str(options["onnx"])})
        return choice, Link(stage="read", config=config, where=self.document.where(("model",), key=True))

    def path(self, given: str, at: KeyPath) -> str:
        """Relative to the profile's folder, else to the current one; both are named if neither exists."""
        tried = [(self.base / given).resolve(), Path(given).resolve()]
        for path in tried:
            if _exists(path):
                return str(path)
        self.complain(
            f"no such file or folder: {given}",
            at,
            "looked at " + " and ".join(dict.fromkeys(map(str, tried))),
        )
        return str(tried[0])

    def section(self, stage: str, value: JSON) -> Link | None:
        """The settings of a stage that stands at the top level."""
        spec: StageSpec = resolve("stage", stage)
        config = validate(spec.config, value, self.document, (stage,), self.problems)
        if config is None:
            return None
        return Link(stage=stage, config=config, where=self.document.where((stage,), key=True))

    def candidates(self, value: JSON) -> tuple[Candidate, ...]:
        if not isinstance(value, dict) or not value:
            self.complain(
                "candidates must name at least one version",
                ("candidates",),
                "write candidates: {fp32: [], int8-ptq: [{quantize: {method: ptq}}]}",
                key=True,
            )
            return ()
        result: list[Candidate] = []
        chains: dict[str, str] = {}
        for name, chain in value.items():
            at: KeyPath = ("candidates", name)
            if not _NAME.fullmatch(name):
                self.complain(
                    f"{name!r} cannot be a candidate's name",
                    at,
                    "use letters, digits, dot, dash, underscore",
                    key=True,
                )
            links = self.chain(chain, at)
            result.append(Candidate(name=name, chain=links, where=self.document.where(at, key=True)))
            shape = repr(chain)
            if shape in chains:
                self.complain(f"{name!r} is the same chain as {chains[shape]!r}", at, "remove one", key=True)
            chains[shape] = name
        return tuple(result)

    def chain(self, value: JSON, at: KeyPath) -> tuple[Link, ...]:
        if isinstance(value, dict) and "recipe" in value:  # short for a chain of the one stage that it names
            settings = {k: v for k, v in value.items() if k != "recipe"}
            value = [{str(value["recipe"]): settings}]
        if not isinstance(value, list):
            self.complain(
                f"{'.'.join(map(str, at))} is {value!r}, expected a list of steps",
                at,
                "write [] for the float model, [{quantize: {method: ptq}}], or {recipe: auto, …}",
            )
            return ()
        links: list[Link] = []
        for index, item in enumerate(value):
            here: KeyPath = (*at, index)
            if not isinstance(item, dict) or len(item) != 1:
                self.complain("a step is one stage with its settings", here, "write - {prune: {ratio: 0.5}}")
                continue
            ((stage, given),) = item.items()
            known = [name for name in table("stage") if resolve("stage", name).is_chain_link]
            if stage not in known:
                self.complain(f"unknown step {stage!r}", (*here, stage), did_you_mean(stage, known), key=True)
                continue
            spec: StageSpec = resolve("stage", stage)
            config = validate(
                spec.config,
                {} if given is None else given,
                self.document,
                (*here, stage),
                self.problems,
            )
            if config is not None:
                links.append(
                    Link(stage=stage, config=config, where=self.document.where((*here, stage), key=True))
                )
        return tuple(links)

    def targets(self, value: JSON) -> tuple[Target, ...]:
        if not isinstance(value, list):
            self.complain(
                f"targets is {value!r}, expected a list", ("targets",), "write targets: [host-cpu]", key=True
            )
            return ()
        if not value:
            self.complain(
                "targets must list at least one device", ("targets",), "write targets: [host-cpu]", key=True
            )
            return ()
        result: list[Target] = []
        for index, name in enumerate(value):
            at: KeyPath = ("targets", index)
            if not isinstance(name, str):
                self.complain(f"a target is a device's name, not {name!r}", at)
                continue
            try:
                device = None if name == HOST_CPU else hardware_profiles.find(name, self.base)
            except ConfigError as error:
                self.absorb(error, at)
                continue
            name = device.name if device else name
            if name in {target.name for target in result}:
                self.complain(f"the target {name!r} stands twice", at, "remove one")
                continue
            result.append(Target(name=name, hardware=device, where=self.document.where(at)))
        return tuple(result)

    def trackers(self, value: JSON) -> tuple[Choice, ...]:
        """``[tensorboard]`` or ``[{name: tensorboard, …}]``."""
        if not isinstance(value, list):
            self.complain(f"track is {value!r}, expected a list", ("track",), "write track: [tensorboard]")
            return ()
        found: list[Choice] = []
        for index, item in enumerate(value):
            at: KeyPath = ("track", index)
            options: dict[str, JSON] = dict(item) if isinstance(item, dict) else {"name": item}
            name = options.pop("name", None)
            try:
                spec: SinkSpec = resolve("tracker", name if isinstance(name, str) else str(name))
            except ConfigError as error:
                self.absorb(error, at)
                continue
            settings = validate(spec.settings, options, self.document, at, self.problems)
            if settings is not None:
                found.append(Choice(name=str(name), factory=None, options=settings.to_json()))
        return tuple(found)

    def requirements(self, value: JSON, targets: tuple[Target, ...]) -> tuple[Requirement, ...]:
        if not isinstance(value, list):
            self.complain(
                "requirements is a list", ("requirements",), "write - {metric: …, max: …}", key=True
            )
            return ()
        result: list[Requirement] = []
        names = [target.name for target in targets]
        for index, item in enumerate(value):
            at: KeyPath = ("requirements", index)
            requirement = validate(Requirement, item, self.document, at, self.problems)
            if requirement is None:
                continue
            if requirement.target is not None and requirement.target not in names:
                self.complain(
                    f"the requirement names {requirement.target!r}, which is no target of this profile",
                    (*at, "target"),
                    did_you_mean(requirement.target, names),
                )
            result.append(requirement)
        return tuple(result)
