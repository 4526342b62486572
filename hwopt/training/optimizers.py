"""Optimizers by name, light to import. A new one is one constant here or in your package, and one line in
``plugins.py`` or in your entry points; any class serves without, as ``module:Class``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Final

from pydantic import Field

from hwopt.core.canonical import JSON
from hwopt.core.choices import NoOptions
from hwopt.core.settings import Settings

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Decay(Enum):
    """What the optimizer makes of ``weight_decay``."""

    COUPLED = "coupled"  # added to the gradient, so an adaptive rate divides it
    DECOUPLED = "decoupled"  # the weights shrink by (1 - lr · weight_decay)
    NONE = "none"  # the optimizer knows none


class Stepping(Enum):
    """How a step is made."""

    PLAIN = "plain"  # gradients, then step()
    CLOSURE = "closure"  # step(closure) asks for gradients itself, as L-BFGS does
    TWICE = "twice"  # gradients, then step(closure), which asks for them again elsewhere, as SAM does


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer class and what the loop must know of it."""

    reference: str  # "module:class"; called as class(groups, lr=…, weight_decay=…, **options)
    options: type[Settings] | None = (
        NoOptions  # None: whatever the class takes; what is left out is its default
    )
    fixed: Mapping[str, JSON] = field(default_factory=dict)  # what the name stands for
    default_lr: float = 1e-3
    decay: Decay = Decay.COUPLED
    stepping: Stepping = Stepping.PLAIN
    create_graph: bool = False  # backward must keep the graph, for second derivatives
    resumes: bool = True  # its state_dict() holds all it remembers, as numbers and tensors
    switches: bool = False  # has train() and eval(): the weights to evaluate are others than those to train
    schedule_free: bool = False  # brings its own schedule; others are refused
    groups: bool = True  # takes parameter groups
    wants_matrices: bool = False  # groups must say which of them hold hidden matrices
    base: str | None = None  # a wrapper: the optimizer inside, where the profile names none
    state: float | None = None  # numbers of state per parameter
    licence: str = "BSD-3-Clause"  # of the code
    extra: str | None = None  # the extra of hwopt that brings it


class MomentumOptions(Settings):
    """Of SGD with momentum."""

    momentum: Share | None = None
    dampening: Share | None = None


class NesterovOptions(Settings):
    """Of SGD with Nesterov momentum."""

    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None


class AdagradOptions(Settings):
    """Of Adagrad."""

    lr_decay: NotNegative | None = None
    eps: Positive | None = None
    initial_accumulator_value: NotNegative | None = None


class AdadeltaOptions(Settings):
    """Of Adadelta."""

    rho: Share | None = None
    eps: Positive | None = None


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


class BetasOptions(Settings):
    """Of AMSGrad and Adamax."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None


class NadamOptions(Settings):
    """Of NAdam."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None
    momentum_decay: NotNegative | None = None


class RadamOptions(Settings):
    """Of RAdam."""

    betas: tuple[Share, Share] | None = None
    eps: Positive | None = None
    decoupled_weight_decay: bool | None = None


class AdafactorOptions(Settings):
    """Of Adafactor."""

    beta2_decay: Annotated[float, Field(lt=0)] | None = None
    d: Positive | None = None


class AsgdOptions(Settings):
    """Of averaged SGD."""

    lambd: NotNegative | None = None
    alpha: Positive | None = None
    t0: NotNegative | None = None


class LbfgsOptions(Settings):
    """Of L-BFGS."""

    max_iter: Annotated[int, Field(ge=1, le=1000)] | None = None
    history_size: Annotated[int, Field(ge=1, le=1000)] | None = None
    line_search_fn: Annotated[str, Field(pattern="^strong_wolfe$")] | None = None


class MuonOptions(Settings):
    """Of Muon with AdamW for what is no hidden matrix."""

    momentum: Share | None = None
    nesterov: bool | None = None
    ns_steps: Annotated[int, Field(ge=1, le=20)] | None = None
    rest_lr: Positive | None = None  # of AdamW; None: a twentieth of lr
    betas: tuple[Share, Share] | None = None  # of AdamW
    eps: Positive | None = None  # of AdamW
    dtype: Annotated[str, Field(pattern="^(float32|bfloat16)$")] | None = None  # None: the faster one here


def _torch(name: str, state: float, options: type[Settings] = NoOptions, **more: object) -> OptimizerSpec:
    return OptimizerSpec(reference=f"torch.optim:{name}", options=options, state=state, **more)  # type: ignore[arg-type]


SGD: Final = _torch("SGD", 0, default_lr=0.1)
MOMENTUM: Final = _torch("SGD", 1, MomentumOptions, fixed={"momentum": 0.9}, default_lr=0.03)
NESTEROV: Final = _torch(
    "SGD", 1, NesterovOptions, fixed={"momentum": 0.9, "nesterov": True}, default_lr=0.03
)
ADAGRAD: Final = _torch("Adagrad", 1, AdagradOptions, default_lr=0.03)
ADADELTA: Final = _torch("Adadelta", 2, AdadeltaOptions, default_lr=1.0)
RMSPROP: Final = _torch("RMSprop", 1, RmspropOptions)
ADAM: Final = _torch("Adam", 2, AdamOptions)
AMSGRAD: Final = _torch("Adam", 3, BetasOptions, fixed={"amsgrad": True})
ADAMW: Final = _torch("AdamW", 2, AdamOptions, decay=Decay.DECOUPLED)
NADAM: Final = _torch("NAdam", 2, NadamOptions)
NADAMW: Final = _torch(
    "NAdam", 2, NadamOptions, fixed={"decoupled_weight_decay": True}, decay=Decay.DECOUPLED
)
RADAM: Final = _torch("RAdam", 2, RadamOptions)
ADAMAX: Final = _torch("Adamax", 2, BetasOptions, default_lr=2e-3)
ADAFACTOR: Final = _torch("Adafactor", 0.1, AdafactorOptions, default_lr=0.01, decay=Decay.DECOUPLED)
ASGD: Final = _torch("ASGD", 1, AsgdOptions, default_lr=0.1)
LBFGS: Final = _torch(
    "LBFGS", 200, LbfgsOptions, fixed={"line_search_fn": "strong_wolfe"}, default_lr=1.0, decay=Decay.NONE,
    stepping=Stepping.CLOSURE, groups=False,
)  # fmt: skip
MUON: Final = OptimizerSpec(
    reference="hwopt.training.muon:Muon", options=MuonOptions, default_lr=0.02, decay=Decay.DECOUPLED,
    wants_matrices=True, state=1.5,
)  # fmt: skip


def _extra(name: str, state: float | None, default_lr: float, **more: object) -> OptimizerSpec:
    return OptimizerSpec(
        reference=f"pytorch_optimizer:{name}", options=None, state=state, default_lr=default_lr,
        licence="Apache-2.0", extra="optim", **more,  # type: ignore[arg-type]
    )  # fmt: skip


_W: Final = Decay.DECOUPLED
_DECOUPLED: Final[Mapping[str, JSON]] = {"weight_decouple": True}
LION: Final = _extra("Lion", 1, 3e-4, decay=_W)
ADEMAMIX: Final = _extra("AdEMAMix", 3, 1e-3, decay=_W, fixed=_DECOUPLED)
ADOPT: Final = _extra("ADOPT", 2, 1e-3, decay=_W, fixed=_DECOUPLED)
MARS: Final = _extra("MARS", 3, 3e-3, decay=_W)
STABLEADAMW: Final = _extra("StableAdamW", 2, 1e-3, decay=_W)
ADAN: Final = _extra("Adan", 4, 1e-3, decay=_W, fixed=_DECOUPLED)
LAMB: Final = _extra("Lamb", 2, 3e-3, decay=_W)
LARS: Final = _extra("LARS", 1, 1.0)
SOAP: Final = _extra("SOAP", 4, 3e-3, decay=_W, resumes=False)
SHAMPOO: Final = _extra("ScalableShampoo", None, 1e-2, resumes=False)
# Draws from NumPy's global generator: two runs of one seed differ.
KRON: Final = _extra("Kron", None, 1e-3, decay=_W, resumes=False)
SOPHIA_H: Final = _extra("SophiaH", 2, 0.06, decay=_W, create_graph=True)
ADAHESSIAN: Final = _extra("AdaHessian", 2, 0.1, decay=_W, create_graph=True)
PRODIGY: Final = _extra("Prodigy", 4, 1.0, decay=_W)
DADAPT_ADAM: Final = _extra("DAdaptAdam", 3, 1.0)
DADAPT_SGD: Final = _extra("DAdaptSGD", 3, 1.0, resumes=False)
SCHEDULEFREE_ADAMW: Final = _extra("ScheduleFreeAdamW", 2, 5e-3, decay=_W, switches=True, schedule_free=True)
SCHEDULEFREE_SGD: Final = _extra("ScheduleFreeSGD", 1, 1.0, switches=True, schedule_free=True)
SCHEDULEFREE_RADAM: Final = _extra("ScheduleFreeRAdam", 2, 5e-3, decay=_W, switches=True, schedule_free=True)
SAM: Final = _extra("SAM", None, 0.03, stepping=Stepping.TWICE, base="momentum")
LOOKAHEAD: Final = _extra("Lookahead", None, 1e-3, base="adamw", decay=_W, resumes=False)
