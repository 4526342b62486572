"""From settings to optimizers: parameter groups by the kind of their module, one or several optimizers."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwopt.core.canonical import JSON
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.plugins import did_you_mean, load_reference, resolve
from hwopt.training.choices import GroupSettings, OptimizerSettings
from hwopt.training.optimizers import OptimizerSpec, Stepping
from hwopt.training.settings import FitSettings
from hwopt.training.snapshot import KEEP

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a parameter is to its network."""

    matrix: bool  # a matrix or kernel: weight decay, l1, l2 and max_weight apply
    hidden: bool  # a matrix that is neither a table of embeddings nor the last layer


def roles(module: nn.Module) -> dict[str, Role]:
    """Of every parameter, by the type of the module that owns it: not by name."""
    found: dict[str, Role] = {}
    last = ""
    tables = _tables(module) if isinstance(module, fx.GraphModule) else set()
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            table = isinstance(owner, nn.Embedding | nn.EmbeddingBag) or name in tables
            grid = leaf.endswith("log2_scale")  # of fake quantization
            matrix = parameter.dim() > 1 and not isinstance(owner, _NORMS) and not table and not grid
            found[name] = Role(matrix=matrix, hidden=matrix)
            if matrix:
                last = name
    if last:
        found[last] = Role(matrix=True, hidden=False)
    return found


def _tables(module: fx.GraphModule) -> set[str]:
    """Parameters that a traced graph reads rows of."""
    readers = [n for n in module.graph.nodes if n.op == "call_function" and "embedding" in str(n.target)]
    return {str(n.args[0].target) for n in readers if isinstance(n.args[0], fx.Node)}


def parameter_groups(
    named: Sequence[tuple[str, Tensor]],
    role: Mapping[str, Role],
    weight_decay: float,
    *,
    matrices: bool = False,
) -> list[dict[str, Any]]:
    """Decay on matrices and convolution kernels; none on biases, norms, embeddings and quantization scales.

    Args:
        matrices: also tell hidden matrices apart, for optimizers that treat them differently.
    """
    kinds: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in named:
        mine = role[name]
        kinds.setdefault((mine.matrix, mine.hidden and matrices), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (matrix, hidden), parameters in sorted(kinds.items(), reverse=True, key=lambda item: item[0]):
        group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay if matrix else 0.0}
        groups.append(group | {"matrices": hidden} if matrices else group)
    return groups


def build_optimizer(settings: OptimizerSettings, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over parameter groups.

    Raises:
        EngineMissingError: it comes with an extra that is not installed.
        ConfigError: it does not take the options.
    """
    spec = settings.spec
    options = {**spec.fixed, **settings.options}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    make = _class(spec, settings.name)
    if spec.base is not None:
        return _wrapped(make, settings, groups, options)
    if not spec.groups:
        groups = [{"params": [p for group in groups for p in group["params"]]}]
    try:
        made: torch.optim.Optimizer = make(list(groups), lr=settings.rate, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _refused(settings.name, make, error) from error
    return made


def _wrapped(
    make: Callable[..., Any],
    settings: OptimizerSettings,
    groups: Sequence[dict[str, Any]],
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    name = settings.base or str(settings.spec.base)
    inner: OptimizerSpec = resolve("optimizer", name)
    outer = set(inspect.signature(make).parameters) - {"kwargs"}
    own = {k: v for k, v in options.items() if k in outer}
    rest = {**inner.fixed, **{k: v for k, v in options.items() if k not in outer}}
    base = _class(inner, name)
    rate = settings.spec.default_lr if settings.lr is None else settings.rate
    try:
        if "base_optimizer" in outer:
            made: torch.optim.Optimizer = make(list(groups), base_optimizer=base, lr=rate, **own, **rest)
        else:
            made = make(base(list(groups), lr=rate, **rest), **own)
    except (TypeError, ValueError) as error:
        raise _refused(settings.name, make, error) from error
    return made


def _class(spec: OptimizerSpec, name: str) -> Any:
    try:
        return load_reference(spec.reference)
    except ModuleNotFoundError as error:
        if spec.extra is not None:
            raise EngineMissingError(
                f"the optimizer {name!r} needs {error.name}, which is not installed",
                fix=f"pip install 'hwopt[{spec.extra}]'",
            ) from error
        raise ConfigError(f"cannot import {spec.reference!r}: no module named {error.name!r}") from error
    except AttributeError as error:
        module = importlib.import_module(spec.reference.partition(":")[0])
        raise ConfigError(
            f"{spec.reference.partition(':')[0]} has no {spec.reference.partition(':')[2]!r}",
            fix=did_you_mean(spec.reference.partition(":")[2], [n for n in dir(module) if n[0].isupper()]),
        ) from error


def _refused(name: str, make: Callable[..., Any], error: Exception) -> ConfigError:
    known = [p for p in inspect.signature(make).parameters if p not in {"self", "params", "kwargs"}]
    return ConfigError(f"the optimizer {name!r}: {error}", fix=f"it takes {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    optimizer: torch.optim.Optimizer
    spec: OptimizerSpec
    name: str
    rates: list[float]  # base rate of every group


class Optimizers:
    """All optimizers of one training, as one: rates, steps, state.

    Raises:
        ConfigError: a group of the settings matches no parameter.
    """

    def __init__(self, module: nn.Module, settings: FitSettings) -> None:
        self.role = roles(module)
        self.frozen: list[str] = []
        self._frozen_patterns = [g.layers for g in settings.groups if g.frozen]
        self.members: list[_Member] = []
        self.table: list[dict[str, JSON]] = []
        chosen = _assign(module, settings.groups)
        own: dict[int, list[tuple[GroupSettings | None, list[tuple[str, Tensor]]]]] = {}
        for index, named in chosen.items():
            group = None if index is None else settings.groups[index]
            if group is not None and group.frozen:
                self.frozen += [name for name, _ in named]
                continue
            key = -1 if group is None or group.optimizer is None else int(index or 0)
            own.setdefault(key, []).append((group, named))
        for key, parts in sorted(own.items()):
            owner = settings.groups[key].optimizer if key >= 0 else None
            self._add(owner or settings.optimizer, parts)
        if not self.members:
            raise ConfigError("no parameter is left to train", fix="freeze fewer layers")

    def _add(
        self,
        settings: OptimizerSettings,
        parts: Sequence[tuple[GroupSettings | None, list[tuple[str, Tensor]]]],
    ) -> None:
        groups: list[dict[str, Any]] = []
        for group, named in parts:
            decay = settings.decay if group is None or group.weight_decay is None else group.weight_decay
            made = parameter_groups(named, self.role, decay, matrices=settings.spec.wants_matrices)
            scale = 1.0 if group is None or group.lr_scale is None else group.lr_scale
            for one in made:
                self.table.append(
                    {
                        "optimizer": settings.name,
                        "layers": ".*" if group is None else group.layers,
                        "tensors": len(one["params"]),
                        "values": sum(p.numel() for p in one["params"]),
                        "weight_decay": one["weight_decay"],
                        "lr": settings.rate * scale * (1.0 if one.get("matrices", True) else 0.05),
                    }
                )
                if scale != 1.0:
                    one["lr"] = settings.rate * scale
            groups += made
        optimizer = build_optimizer(settings, groups)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.members.append(_Member(optimizer=optimizer, spec=settings.spec, name=settings.name, rates=rates))

    @property
    def stepping(self) -> Stepping:
        """Of the first; settings see to it that the others go along."""
        return self.members[0].spec.stepping

    @property
    def create_graph(self) -> bool:
        """Whether backward must keep the graph."""
        return any(member.spec.create_graph for member in self.members)

    def still_norms(self, module: nn.Module) -> list[nn.Module]:
        """Batch norms that are frozen: their statistics stay, too."""
        found: list[nn.Module] = []
        for prefix, owner in module.named_modules():
            if not isinstance(owner, nn.modules.batchnorm._BatchNorm):
                continue
            own = {
                f"{prefix}.{leaf}" if prefix else leaf: p for leaf, p in owner.named_parameters(recurse=False)
            }
            by_name = any(re.match(pattern, f"{prefix}.") for pattern in self._frozen_patterns)
            held = all(name in self.frozen or not p.requires_grad for name, p in own.items())
            if (own and held) or (not own and by_name):
                found.append(owner)
        return found

    @property
    def resumes(self) -> bool:
        """Whether a snapshot can hold the state of all."""
        return all(member.spec.resumes for member in self.members)

    def all(self) -> Iterator[torch.optim.Optimizer]:
        """One after the other."""
        return (member.optimizer for member in self.members)

    def set_factor(self, factor: float) -> None:
        """The rates, as a share of the base rates."""
        for member in self.members:
            for group, rate in zip(member.optimizer.param_groups, member.rates, strict=True):
                group["lr"] = rate * factor

    def zero_grad(self) -> None:
        """Forget gradients."""
        for optimizer in self.all():
            optimizer.zero_grad(set_to_none=True)

    def switch(self, *, training: bool) -> None:
        """Weights to train, or weights to evaluate, where an optimizer tells them apart."""
        for member in self.members:
            if member.spec.switches:
                (member.optimizer.train if training else member.optimizer.eval)()  # type: ignore[attr-defined]

    def state_dict(self) -> list[dict[str, Any]]:
        """Of every optimizer."""
        return [optimizer.state_dict() for optimizer in self.all()]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """The inverse; what a file could not hold stays as it was built."""
        for optimizer, state in zip(self.all(), states, strict=True):
            if "param_groups" not in state:  # of a wrapper with a format of its own
                optimizer.load_state_dict(state)
                continue
            fresh = optimizer.state_dict()
            groups = [
                {k: now.get(k) if v is KEEP else v for k, v in old.items()}
                for old, now in zip(state["param_groups"], fresh["param_groups"], strict=True)
            ]
            optimizer.load_state_dict({**state, "param_groups": groups})

    def text(self) -> str:
        """What is decayed, in a line."""
        decayed = [row for row in self.table if row["weight_decay"]]
        plain = [row for row in self.table if not row["weight_decay"]]
        names = ", ".join(dict.fromkeys(str(row["optimizer"]) for row in self.table))
        frozen = f", {len(self.frozen)} frozen" if self.frozen else ""
        return (
            f"{names}: weight decay on {_count(decayed)}, none on {_count(plain)}{frozen}"
            if decayed
            else f"{names}: no weight decay, {_count(plain)}{frozen}"
        )


def _count(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(row['tensors'] for row in rows)} tensors ({sum(row['values'] for row in rows):,} values)"


def _assign(module: nn.Module, groups: Sequence[GroupSettings]) -> dict[int | None, list[tuple[str, Tensor]]]:
    """Trainable parameters by the first group whose expression matches their name."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    found: dict[int | None, list[tuple[str, Tensor]]] = {}
    for name, parameter in named:
        index = next((i for i, g in enumerate(groups) if re.match(g.layers, name)), None)
        found.setdefault(index, []).append((name, parameter))
    for index, group in enumerate(groups):
        if index not in found:
            some = ", ".join(name for name, _ in named[:8])
            raise ConfigError(
                f"the group for layers {group.layers!r} matches no parameter that an earlier group leaves",
                fix=f"the parameters are {some}{' …' if len(named) > 8 else ''}",
            )
    return found


def smoke_test(module: nn.Module, settings: FitSettings, x: Tensor, y: Tensor) -> None:
    """Two steps on a copy, for classes that nothing is known of.

    Raises:
        ConfigError: the optimizer cannot train this network in this loop.
    """
    trial = copy.deepcopy(module).train()
    optimizers = Optimizers(trial, settings)

    def closure() -> Tensor:
        optimizers.zero_grad()
        loss = nn.functional.cross_entropy(trial(x), y)
        with warnings.catch_warnings():  # of a reference cycle, broken by zero_grad
            warnings.simplefilter("ignore")
            loss.backward(create_graph=optimizers.create_graph)
        return loss

    optimizers.switch(training=True)
    for _ in range(2):
        closure()
        for member in optimizers.members:
            try:
                if member.spec.stepping is Stepping.PLAIN:
                    member.optimizer.step()
                else:
                    member.optimizer.step(closure)  # type: ignore[arg-type]
            except Exception as error:  # whatever a class of others raises
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ConfigError(
                    f"the optimizer {member.name!r} failed in a trial of two steps: {text}",
                    fix="choose another; docs/training.md says which need what",
                ) from error
    optimizers.zero_grad()
