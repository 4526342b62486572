"""Names -> ``"module:attribute"``; nothing is imported before it is used.

Built-in and outside plug-ins take the same road: a package adds names by the entry-point group
``hwopt.plugins`` with keys such as ``optimizer.lion = "mypkg.optim:LION"``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from hwopt.errors import ConfigError

GROUP: Final = "hwopt.plugins"

_BUILT_IN: Final[dict[str, dict[str, str]]] = {
    "stage": {
        "train": "hwopt.stages.train.spec:SPEC",
        "prune": "hwopt.stages.prune.spec:SPEC",
        "finetune": "hwopt.stages.finetune.spec:SPEC",
        "quantize": "hwopt.stages.quantize.spec:SPEC",
        "export": "hwopt.stages.export.spec:SPEC",
        "evaluate": "hwopt.stages.evaluate.spec:SPEC",
        "benchmark": "hwopt.stages.benchmark.spec:SPEC",
        "estimate": "hwopt.stages.estimate.spec:SPEC",
    },
    "backend": {
        "onnxruntime": "hwopt.backends.onnxruntime.spec:SPEC",
        "tensorrt": "hwopt.backends.tensorrt.spec:SPEC",
    },
    "model": {
        "mlp": "hwopt.models.zoo:MLP",
        "cnn": "hwopt.models.zoo:CNN",
        "mobilenet_v2": "hwopt.models.zoo:MOBILENET_V2",
    },
    "data": {
        "digits": "hwopt.data.digits:SOURCE",
        "mnist": "hwopt.data.idx:SOURCE",
        "npz": "hwopt.data.npz:SOURCE",
    },
    "optimizer": {
        "sgd": "hwopt.training.optimizers:SGD",
        "momentum": "hwopt.training.optimizers:MOMENTUM",
        "nesterov": "hwopt.training.optimizers:NESTEROV",
        "adagrad": "hwopt.training.optimizers:ADAGRAD",
        "rmsprop": "hwopt.training.optimizers:RMSPROP",
        "adam": "hwopt.training.optimizers:ADAM",
        "adamw": "hwopt.training.optimizers:ADAMW",
        "nadamw": "hwopt.training.optimizers:NADAMW",
        "radam": "hwopt.training.optimizers:RADAM",
    },
    "schedule": {
        "constant": "hwopt.training.schedules:constant",
        "cosine": "hwopt.training.schedules:cosine",
        "linear": "hwopt.training.schedules:linear",
        "one_cycle": "hwopt.training.schedules:one_cycle",
        "step": "hwopt.training.schedules:step",
    },
}


@cache
def table(kind: str) -> dict[str, str]:
    """All names of one kind with their references; two providers of a name are an error."""
    names = dict(_BUILT_IN[kind])
    for entry in importlib.metadata.entry_points(group=GROUP):
        prefix, _, name = entry.name.partition(".")
        if prefix != kind:
            continue
        if name in names:
            raise ConfigError(
                f"two providers of {kind} {name!r}: {names[name]} and {entry.value}",
                fix="uninstall one of the two packages, or rename its entry point",
            )
        names[name] = entry.value
    return names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A fix line: the nearest known name first, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    listed = ", ".join(known)
    return f"did you mean {near[0]!r}? known: {listed}" if near else f"choose one of: {listed}"


def load_reference(reference: str) -> Any:
    """The object that ``"module:attribute"`` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(kind: str, name: str) -> Any:
    """The plug-in ``name`` of ``kind``, imported now; ConfigError with a hint for an unknown name."""
    names = table(kind)
    if name not in names:
        raise ConfigError(f"unknown {kind} {name!r}", fix=did_you_mean(name, names))
    return load_reference(names[name])


@contextmanager
def user_modules(root: Path | None) -> Iterator[None]:
    """Make the modules of the project folder importable, and nothing outside it."""
    if root is None:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def call_factory(
    reference: str, root: Path | None, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call the user's ``module:function`` with its options and with what it asks for of ``offered``.

    Raises:
        ConfigError: the module or function is not there, or does not take the options.
    """
    module_name, _, function_name = reference.partition(":")
    with user_modules(root):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"cannot import {module_name!r}: no module named {error.name!r}",
                fix=f"the module is looked for in {root or Path.cwd()} and among the installed packages",
            ) from None
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ConfigError(f"the module {module_name!r} has no function {function_name!r}")
        signature = inspect.signature(function)
        wants_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        given = {k: v for k, v in offered.items() if wants_all or k in signature.parameters}
        try:
            signature.bind(**given, **options)
        except TypeError as error:
            raise ConfigError(
                f"{reference}{signature} does not fit the options {sorted(options)}: {error}",
                fix=f"it is called by keyword, and may also take {', '.join(offered)}" if offered else None,
            ) from None
        return function(**given, **options)
