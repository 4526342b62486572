"""JSON Schemas of what users write, for editors: made of the settings classes that check it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hwopt.config import hardware as hardware_profiles
from hwopt.config.architecture import WIDTH_DEPTH
from hwopt.config.profile import Head
from hwopt.core.canonical import JSON
from hwopt.core.choices import DataSource, ModelSpec
from hwopt.core.hardware import HardwareProfile
from hwopt.core.policy import Policy
from hwopt.core.profile import HOST_CPU, Release, Requirement, RunLimits
from hwopt.core.search import SearchSettings
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec
from hwopt.plugins import resolve, table
from hwopt.tracking.sink import SinkSpec
from hwopt.training.race_settings import RaceSettings

KINDS: Final = ("profile", "policy", "hardware")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def schema(kind: str) -> Schema:
    """The schema of a profile, a gate's policy or a hardware profile."""
    if kind == "policy":
        return {"$schema": _DIALECT, "title": "hwopt policy", **Policy.model_json_schema()}
    if kind == "hardware":
        return {"$schema": _DIALECT, "title": "hwopt hardware profile", **HardwareProfile.model_json_schema()}
    return _profile()


def _profile() -> Schema:
    defs: Schema = {}

    def of(model: type[Settings]) -> Schema:
        """The class's own schema, its parts moved beside those of the others."""
        own = model.model_json_schema(ref_template="#/$defs/{model}")
        for name, part in own.pop("$defs", {}).items():
            if defs.setdefault(name, part) != part:
                raise ValueError(f"two settings classes are called {name}")
        return own

    def named(kind: str) -> Iterator[Schema]:
        for name in sorted(table(kind)):
            spec: DataSource | ModelSpec = resolve(kind, name)
            own = of(spec.settings)
            own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
            own["required"] = ["name", *own.get("required", [])]
            yield own
        factory = {"type": "string", "pattern": "^[A-Za-z_][\\w.]*:[A-Za-z_]\\w*$"}
        yield {"type": "object", "properties": {"factory": factory}, "required": ["factory"]}

    def stage(name: str) -> Schema:
        spec: StageSpec = resolve("stage", name)
        return of(spec.config)

    links = [name for name in sorted(table("stage")) if resolve("stage", name).is_chain_link]
    link = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {name: {"anyOf": [stage(name), {"type": "null"}]} for name in links},
    }
    recipe = {"type": "object", "properties": {"recipe": {"enum": list[JSON](links)}}, "required": ["recipe"]}
    read = stage("read")
    read.get("properties", {}).pop("digest", None)
    inspect = stage("inspect")
    for name in ("runtime", "threads", "spinning"):  # those of the benchmark
        inspect["properties"].pop(name)
    head = Head.model_json_schema()
    properties: Schema = {name: head["properties"][name] for name in ("name", "seed", "threads", "ship")}
    trackers = []
    for name in sorted(table("tracker")):
        tracker: SinkSpec = resolve("tracker", name)
        own = of(tracker.settings)
        own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
        trackers += [own, {"const": name}]
    search = of(SearchSettings)
    space = search["properties"]["space"]
    space["properties"] = {WIDTH_DEPTH: {"type": "boolean"}}
    search["properties"]["space"] = {"anyOf": [space, {"const": WIDTH_DEPTH}]}
    properties |= {
        "data": {"oneOf": list(named("data"))},
        "model": {"oneOf": [*named("model"), read]},
        "train": stage("train"),
        "benchmark": stage("benchmark"),
        "estimate": stage("estimate"),
        "inspect": inspect,
        "candidates": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"type": "array", "items": link}, recipe]},
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"enum": [HOST_CPU, *hardware_profiles.names()]},
                    {"type": "string", "pattern": "\\.ya?ml$"},
                ]
            },
        },
        "requirements": {"type": "array", "items": of(Requirement)},
        "track": {"type": "array", "items": {"anyOf": trackers}},
        "limits": of(RunLimits),
        "release": of(Release),
        "search": {"anyOf": [search, {"const": WIDTH_DEPTH}, {"type": "null"}]},
        "compare": {"anyOf": [of(RaceSettings), {"type": "null"}]},
    }
    return {
        "$schema": _DIALECT,
        "title": "hwopt profile",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "data", "model", "candidates", "targets"],
        "properties": properties,
        "$defs": defs,
    }
