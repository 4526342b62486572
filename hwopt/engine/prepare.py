"""From a profile to a plan against this machine."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hwopt.config import hardware as hardware_profiles
from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.canonical import JSON, digest_of, digest_of_file
from hwopt.core.dataset import Dataset
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.host import describe
from hwopt.core.plan import Plan
from hwopt.core.profile import PipelineProfile
from hwopt.data.load import fingerprint
from hwopt.engine import host as this_host
from hwopt.engine.perform import loader
from hwopt.errors import ConfigError, HwoptError
from hwopt.planning.availability import World
from hwopt.planning.planner import plan
from hwopt.plugins import load_reference, resolve, source_files, user_modules
from hwopt.processes import Limits


@cache
def probe(name: str) -> Availability:
    """Whether a backend can run here."""
    spec: BackendSpec = resolve("backend", name)
    state: Availability = load_reference(spec.probe)()
    return state


@cache
def host_profile() -> HardwareProfile | None:
    """The shipped profile that this machine's CPU is of the kind of."""
    profiles = [hardware_profiles.shipped(name) for name in hardware_profiles.names()]
    return describe(this_host.detect(), [p for p in profiles if p.kind is DeviceKind.CPU])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A profile with its plan and the data, loaded at most once."""

    profile: PipelineProfile
    plan: Plan
    data: Callable[[], Dataset]
    import_root: Path
    host_profile: HardwareProfile | None
    contents: str  # digest of the data

    @property
    def threads(self) -> int:
        """Of training."""
        return self.profile.threads or this_host.usable_cores()


def prepare(profile: PipelineProfile, reference: PipelineProfile | None = None) -> Prepared:
    """Plan a profile against this machine; ConfigError with every problem.

    Args:
        reference: a profile of the same data whose float model the versions are compared with.
    """
    profile = replace(profile, threads=profile.threads or this_host.usable_cores())
    root = profile.path.resolve().parent
    whole = loader(profile.data, profile.data_where, root)
    try:
        contents = fingerprint(profile.data, whole)
    except HwoptError as error:
        raise error.at(profile.data_where) from None
    data = whole
    if profile.holdout is not None:
        data = loader(profile.data, profile.data_where, root, profile.holdout)
        contents = digest_of({"data": contents, "holdout": profile.holdout.to_json()})
    device = host_profile()
    world = World(
        host=this_host.detect(),
        host_profile=device,
        probe=probe,
        data_fingerprint=contents,
        model_code=code_digest(profile, root),
    )
    beside = None
    if reference is not None:
        reference = replace(reference, threads=reference.threads or this_host.usable_cores())
        beside = (reference, replace(world, model_code=code_digest(reference, root)))
    return Prepared(
        profile=profile,
        plan=plan(profile, world, beside),
        data=data,
        import_root=root,
        host_profile=device,
        contents=contents,
    )


def limits_of(profile: PipelineProfile) -> Limits:
    """What a worker process of a profile may use."""
    limits = profile.limits
    memory = limits.memory_gb * 1e9 if limits.memory_gb else this_host.memory_bytes()
    return Limits(
        seconds=limits.step_seconds,
        memory_bytes=None if memory is None else int(memory),
        file_bytes=None if limits.file_gb is None else int(limits.file_gb * 1e9),
    )


def code_digest(profile: PipelineProfile, root: Path) -> str:
    """Digest of the project's files that make up the user's model and optimizers: edited code trains anew."""
    config: Any = profile.source.config
    chosen = [getattr(config, "optimizer", None), *(g.optimizer for g in getattr(config, "groups", ()))]
    classes = [o.name for o in chosen if o is not None and ":" in o.name]
    parts = [_code_of(name.partition(":")[0], root, profile.source.where, optional=True) for name in classes]
    if profile.model.factory is not None:
        parts.append(
            _code_of(profile.model.factory.partition(":")[0], root, profile.model_where, optional=False)
        )
    return "" if not any(parts) else parts[0] if len(parts) == 1 else digest_of(list[JSON](parts))


def _code_of(name: str, root: Path, where: str, *, optional: bool) -> str:
    """Digest of a module's files in the project folder, else of the installed module."""
    files = source_files(name, root)
    if files:
        digest = hashlib.sha256()
        for path in files:
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
        return "sha256:" + digest.hexdigest()
    with user_modules(root):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        if optional and spec is not None:
            return ""  # built in
        raise ConfigError(
            f"cannot import {name!r}",
            where=where,
            fix=f"the module is looked for in {root} and among the installed packages",
        )
    return digest_of_file(Path(spec.origin))
