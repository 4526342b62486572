"""Optimizers by name, light to import. A new one is one constant here or in your package, and one line in
``plugins.py`` or in your entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hwopt.core.canonical import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer class and the options a profile may set besides lr and weight_decay."""

    reference: str  # "module:class"; called as class(groups, lr=…, weight_decay=…, **options)
    options: frozenset[str] = frozenset()
    fixed: Mapping[str, JSON] = field(default_factory=dict)  # what the name stands for
    default_lr: float = 1e-3


_BETAS: Final = frozenset({"betas", "eps"})

SGD: Final = OptimizerSpec(reference="torch.optim:SGD", default_lr=0.1)
MOMENTUM: Final = OptimizerSpec(
    reference="torch.optim:SGD",
    options=frozenset({"momentum", "dampening"}),
    fixed={"momentum": 0.9},
    default_lr=0.03,
)
NESTEROV: Final = OptimizerSpec(
    reference="torch.optim:SGD",
    options=frozenset({"momentum"}),
    fixed={"momentum": 0.9, "nesterov": True},
    default_lr=0.03,
)
ADAGRAD: Final = OptimizerSpec(
    reference="torch.optim:Adagrad",
    options=frozenset({"lr_decay", "eps", "initial_accumulator_value"}),
    default_lr=0.03,
)
RMSPROP: Final = OptimizerSpec(
    reference="torch.optim:RMSprop", options=frozenset({"alpha", "eps", "momentum", "centered"})
)
ADAM: Final = OptimizerSpec(reference="torch.optim:Adam", options=_BETAS | {"amsgrad"})
ADAMW: Final = OptimizerSpec(reference="torch.optim:AdamW", options=_BETAS | {"amsgrad"})
NADAMW: Final = OptimizerSpec(
    reference="torch.optim:NAdam", options=_BETAS | {"momentum_decay"}, fixed={"decoupled_weight_decay": True}
)
RADAM: Final = OptimizerSpec(reference="torch.optim:RAdam", options=_BETAS | {"decoupled_weight_decay"})
