"""Optimizers by name, light to import. A new one is one constant here or in your package, and one line in
``plugins.py`` or in your entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

from hwopt.core.canonical import JSON
from hwopt.core.choices import NoOptions
from hwopt.core.settings import Settings

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer class and the options that a profile may set besides lr and weight_decay."""

    reference: str  # "module:class"; called as class(groups, lr=…, weight_decay=…, **options)
    options: type[Settings] = NoOptions  # what is left out keeps the default of the class
    fixed: Mapping[str, JSON] = field(default_factory=dict)  # what the name stands for
    default_lr: float = 1e-3


class MomentumOptions(Settings):
    """Of SGD with momentum."""

    momentum: Share | None = None
    dampening: Share | None = None


class NesterovOptions(Settings):
    """Of SGD with Nesterov momentum."""

    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None


class AdagradOptions(Settings):
    """Of Adagrad."""

    lr_decay: Annotated[float, Field(ge=0)] | None = None
    eps: Positive | None = None
    initial_accumulator_value: Annotated[float, Field(ge=0)] | None = None


class RmspropOptions(Settings):
    """Of RMSprop."""

    alpha: Share | None = None
    eps: Positive | None = None
    momentum: Share | None = None
    centered: bool | None = None


class AdamOptions(Settings):
    """Of Adam and AdamW."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None
    amsgrad: bool | None = None


class NadamOptions(Settings):
    """Of NAdam."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None
    momentum_decay: Annotated[float, Field(ge=0)] | None = None


class RadamOptions(Settings):
    """Of RAdam."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None
    decoupled_weight_decay: bool | None = None


SGD: Final = OptimizerSpec(reference="torch.optim:SGD", default_lr=0.1)
MOMENTUM: Final = OptimizerSpec(
    reference="torch.optim:SGD", options=MomentumOptions, fixed={"momentum": 0.9}, default_lr=0.03
)
NESTEROV: Final = OptimizerSpec(
    reference="torch.optim:SGD",
    options=NesterovOptions,
    fixed={"momentum": 0.9, "nesterov": True},
    default_lr=0.03,
)
ADAGRAD: Final = OptimizerSpec(reference="torch.optim:Adagrad", options=AdagradOptions, default_lr=0.03)
RMSPROP: Final = OptimizerSpec(reference="torch.optim:RMSprop", options=RmspropOptions)
ADAM: Final = OptimizerSpec(reference="torch.optim:Adam", options=AdamOptions)
ADAMW: Final = OptimizerSpec(reference="torch.optim:AdamW", options=AdamOptions)
NADAMW: Final = OptimizerSpec(
    reference="torch.optim:NAdam", options=NadamOptions, fixed={"decoupled_weight_decay": True}
)
RADAM: Final = OptimizerSpec(reference="torch.optim:RAdam", options=RadamOptions)
