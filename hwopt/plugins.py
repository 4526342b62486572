"""Names -> ``"module:attribute"``; nothing is imported before it is used.

Built-in and outside plug-ins take the same road: a package adds names by the entry-point group
``hwopt.plugins`` with keys such as ``optimizer.lion = "mypkg.optim:LION"``.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.metadata
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from hwopt.errors import ConfigError

GROUP: Final = "hwopt.plugins"

_BUILT_IN: Final[dict[str, dict[str, str]]] = {
    "stage": {
        "train": "hwopt.stages.train.spec:SPEC",
        "read": "hwopt.stages.read.spec:SPEC",
        "untrained": "hwopt.stages.untrained.spec:SPEC",
        "prune": "hwopt.stages.prune.spec:SPEC",
        "sparsify": "hwopt.stages.sparsify.spec:SPEC",
        "auto": "hwopt.stages.auto.spec:SPEC",
        "elastic": "hwopt.stages.elastic.spec:SPEC",
        "ensemble": "hwopt.stages.ensemble.spec:SPEC",
        "finetune": "hwopt.stages.finetune.spec:SPEC",
        "quantize": "hwopt.stages.quantize.spec:SPEC",
        "export": "hwopt.stages.export.spec:SPEC",
        "evaluate": "hwopt.stages.evaluate.spec:SPEC",
        "benchmark": "hwopt.stages.benchmark.spec:SPEC",
        "estimate": "hwopt.stages.estimate.spec:SPEC",
        "inspect": "hwopt.stages.inspect.spec:SPEC",
    },
    "backend": {
        "onnxruntime": "hwopt.backends.onnxruntime.spec:SPEC",
        "onnxruntime-cuda": "hwopt.backends.onnxruntime.spec:CUDA",
        "openvino": "hwopt.backends.openvino.spec:SPEC",
        "tensorrt": "hwopt.backends.tensorrt.spec:SPEC",
        "torch": "hwopt.backends.torch.spec:EAGER",
        "torch-compile": "hwopt.backends.torch.spec:COMPILED",
        "torch-cuda": "hwopt.backends.torch.spec:CUDA",
        "tensorrt-rtx": "hwopt.backends.tensorrt_rtx.spec:SPEC",
        "fpga-emulation": "hwopt.backends.emulation.spec:SPEC",
    },
    "model": {
        "mlp": "hwopt.models.zoo:MLP",
        "cnn": "hwopt.models.zoo:CNN",
        "mobilenet_v2": "hwopt.models.zoo:MOBILENET_V2",
        "resnet": "hwopt.models.zoo:RESNET",
        "efficientnet_lite0": "hwopt.models.zoo:EFFICIENTNET_LITE0",
        "text_rnn": "hwopt.models.zoo:TEXT_RNN",
        "transformer": "hwopt.models.zoo:TRANSFORMER",
    },
    "data": {
        "digits": "hwopt.data.digits:SOURCE",
        "mnist": "hwopt.data.idx:SOURCE",
        "npz": "hwopt.data.npz:SOURCE",
        "jsonl": "hwopt.data.text:SOURCE",
        "csv": "hwopt.data.table:SOURCE",
        "images": "hwopt.data.folders:SOURCE",
        "huggingface": "hwopt.data.hubs:HUGGINGFACE",
        "torchvision": "hwopt.data.hubs:TORCHVISION",
    },
    "optimizer": {
        "sgd": "hwopt.training.optimizers:SGD",
        "momentum": "hwopt.training.optimizers:MOMENTUM",
        "nesterov": "hwopt.training.optimizers:NESTEROV",
        "adagrad": "hwopt.training.optimizers:ADAGRAD",
        "adadelta": "hwopt.training.optimizers:ADADELTA",
        "rmsprop": "hwopt.training.optimizers:RMSPROP",
        "adam": "hwopt.training.optimizers:ADAM",
        "amsgrad": "hwopt.training.optimizers:AMSGRAD",
        "adamw": "hwopt.training.optimizers:ADAMW",
        "nadam": "hwopt.training.optimizers:NADAM",
        "nadamw": "hwopt.training.optimizers:NADAMW",
        "radam": "hwopt.training.optimizers:RADAM",
        "adamax": "hwopt.training.optimizers:ADAMAX",
        "adafactor": "hwopt.training.optimizers:ADAFACTOR",
        "asgd": "hwopt.training.optimizers:ASGD",
        "lbfgs": "hwopt.training.optimizers:LBFGS",
        "muon": "hwopt.training.optimizers:MUON",
        "lion": "hwopt.training.optimizers:LION",
        "ademamix": "hwopt.training.optimizers:ADEMAMIX",
        "adopt": "hwopt.training.optimizers:ADOPT",
        "mars": "hwopt.training.optimizers:MARS",
        "stableadamw": "hwopt.training.optimizers:STABLEADAMW",
        "adan": "hwopt.training.optimizers:ADAN",
        "lamb": "hwopt.training.optimizers:LAMB",
        "lars": "hwopt.training.optimizers:LARS",
        "soap": "hwopt.training.optimizers:SOAP",
        "shampoo": "hwopt.training.optimizers:SHAMPOO",
        "kron": "hwopt.training.optimizers:KRON",
        "sophia_h": "hwopt.training.optimizers:SOPHIA_H",
        "adahessian": "hwopt.training.optimizers:ADAHESSIAN",
        "prodigy": "hwopt.training.optimizers:PRODIGY",
        "dadapt_adam": "hwopt.training.optimizers:DADAPT_ADAM",
        "dadapt_sgd": "hwopt.training.optimizers:DADAPT_SGD",
        "schedulefree_adamw": "hwopt.training.optimizers:SCHEDULEFREE_ADAMW",
        "schedulefree_sgd": "hwopt.training.optimizers:SCHEDULEFREE_SGD",
        "schedulefree_radam": "hwopt.training.optimizers:SCHEDULEFREE_RADAM",
        "sam": "hwopt.training.optimizers:SAM",
        "lookahead": "hwopt.training.optimizers:LOOKAHEAD",
    },
    "tracker": {
        "tensorboard": "hwopt.tracking.spec:TENSORBOARD",
        "mlflow": "hwopt.tracking.spec:MLFLOW",
        "wandb": "hwopt.tracking.spec:WANDB",
    },
    "observer": {
        "mse": "hwopt.numerics.observers:Mse",
        "min_max": "hwopt.numerics.observers:MinMax",
        "moving_average": "hwopt.numerics.observers:MovingAverage",
        "percentile": "hwopt.numerics.observers:Percentile",
        "entropy": "hwopt.numerics.observers:Entropy",
    },
    "schedule": {
        "constant": "hwopt.training.schedules:CONSTANT",
        "linear": "hwopt.training.schedules:LINEAR",
        "cosine": "hwopt.training.schedules:COSINE",
        "cosine_restarts": "hwopt.training.schedules:COSINE_RESTARTS",
        "one_cycle": "hwopt.training.schedules:ONE_CYCLE",
        "cyclic": "hwopt.training.schedules:CYCLIC",
        "step": "hwopt.training.schedules:STEP",
        "multi_step": "hwopt.training.schedules:MULTI_STEP",
        "exponential": "hwopt.training.schedules:EXPONENTIAL",
        "polynomial": "hwopt.training.schedules:POLYNOMIAL",
        "wsd": "hwopt.training.schedules:WSD",
        "rex": "hwopt.training.schedules:REX",
        "plateau": "hwopt.training.schedules:PLATEAU",
    },
}


@cache
def _outside() -> tuple[importlib.metadata.EntryPoint, ...]:
    """What other packages add; reading it costs milliseconds, and a plan asks hundreds of times."""
    return tuple(importlib.metadata.entry_points(group=GROUP))


@cache
def table(kind: str) -> dict[str, str]:
    """All names of one kind with their references; two providers of a name are an error."""
    names = dict(_BUILT_IN[kind])
    for entry in _outside():
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
    """The plug-in ``name`` of ``kind``, imported now.

    Raises:
        ConfigError: an unknown name, with a hint; or a plug-in that does not import, with its provider.
    """
    names = table(kind)
    if name not in names:
        raise ConfigError(f"unknown {kind} {name!r}", fix=did_you_mean(name, names))
    try:
        return load_reference(names[name])
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the {kind} {name!r} ({names[name]}) does not import: {error}",
            fix="reinstall the package that provides it",
        ) from error


def provider_version(kind: str, name: str) -> str | None:
    """Version of the outside package that provides a name; None for the built-in ones."""
    for entry in _outside():
        if entry.name == f"{kind}.{name}" and entry.dist is not None:
            return f"{entry.dist.name} {entry.dist.version}"
    return None


def installed_version(distribution: str) -> str:
    """Name and version, or that it is absent."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} absent"


@contextmanager
def user_modules(root: Path | None) -> Iterator[None]:
    """Make the modules of the project folder importable."""
    if root is None:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def source_files(module: str, root: Path) -> list[Path]:
    """The files of the project folder that a user's module consists of, found by reading its imports."""
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        base = root.joinpath(*name.split("."))
        path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
        if path is None or path in found:
            continue
        found[path] = None
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        with contextlib.suppress(SyntaxError):  # importing it will say so, with the line
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    above = (
                        package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                    )
                    start = ".".join([*[a for a in above if a], *([node.module] if node.module else [])])
                    waiting += [start, *(f"{start}.{alias.name}" for alias in node.names)]
    return sorted(found)


def call_factory(
    reference: str, root: Path | None, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call the user's ``module:function`` with its options and with what it asks for of ``offered``.

    Raises:
        ConfigError: the module or function is not there, does not take the options, or raised; with the
            user's own file and line.
    """
    module_name, _, function_name = reference.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(
            f"{module_name!r} belongs to Python's standard library",
            fix="name a function of your own project or of an installed package",
        )
    with user_modules(root):
        module = _guarded(reference, lambda: importlib.import_module(module_name), root)
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
        return _guarded(reference, lambda: function(**given, **options), root)


def _guarded(reference: str, call: Callable[[], Any], root: Path | None) -> Any:
    """Run the user's code; whatever it raises is the user's error, placed in the user's file."""
    try:
        return call()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {reference.partition(':')[0]!r}: no module named {error.name!r}",
            fix=f"the module is looked for in {root or Path.cwd()} and among the installed packages",
        ) from error
    except SyntaxError as error:
        raise ConfigError(
            f"{reference}: syntax error: {error.msg}", where=f"{error.filename}:{error.lineno}"
        ) from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if root is not None and Path(f.filename).is_relative_to(root)]
        place = (own or frames)[-1]
        text = str(error).splitlines()[0] if str(error) else ""
        raise ConfigError(
            f"{reference} raised {type(error).__name__}: {text}", where=f"{place.filename}:{place.lineno}"
        ) from error
