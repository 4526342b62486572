"""Mixed precision: raise the layers whose noise costs most, under a budget; exact.

The choice is a 0/1 knapsack with several limits, solved to optimality by HiGHS through SciPy: Yao et al.,
ICML 2021 (HAWQ-V3), equation 5, with measured noise in place of second derivatives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from hwopt.core.hardware import LayerRule, QDType
from hwopt.errors import ConfigError
from hwopt.quantization.sensitivity import LayerNoise
from hwopt.quantization.settings import MixedSettings

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limit:
    """``sum(cost of raised layers) <= room``."""

    name: str
    costs: Vector  # of raising each layer
    room: float


def choose(gain: Vector, limits: Sequence[Limit]) -> list[int]:
    """Indices of the layers to raise, the greatest gain first: greatest total gain within all limits.

    Raises:
        ConfigError: a limit that not even the uniform version meets.
    """
    for limit in limits:
        if limit.room < 0:
            raise ConfigError(
                f"the budget for {limit.name} is exceeded before any layer is raised, by {-limit.room:g}",
                fix="raise the budget, or choose fewer bits for the uniform version",
            )
    rows = [LinearConstraint(limit.costs[None, :], -np.inf, limit.room) for limit in limits]
    solved = milp(
        -gain,
        constraints=rows,
        integrality=np.ones(len(gain)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    chosen = [i for i, x in enumerate(solved.x) if x > 0.5 and gain[i] > 0]
    return sorted(chosen, key=lambda i: -gain[i])


def mixed_rules(
    low: Sequence[LayerNoise],
    high: Sequence[LayerNoise],
    bits: tuple[QDType, QDType],
    settings: MixedSettings,
    seconds: tuple[Sequence[float], float] | None = None,
) -> list[LayerRule]:
    """One rule for each layer to raise.

    Args:
        low: noise at the scheme's types; ``high`` the same layers at the raised ones.
        bits: the scheme's weight and activation types.
        seconds: what raising each layer costs, and what the uniform version takes; for a latency budget.
    """
    gain = np.asarray([max(a.noise - b.noise, 0.0) for a, b in zip(low, high, strict=True)])
    weights = np.asarray([layer.weights for layer in low], np.float64)
    macs = np.asarray([layer.macs for layer in low], np.float64)
    raised = None if settings.raise_to == "float" else QDType.parse(settings.raise_to)
    wide = 32 if raised is None else raised.bits
    limits: list[Limit] = []
    if settings.layers is not None:
        limits.append(Limit("layers", np.ones(len(low)), np.floor(settings.layers * len(low))))
    if settings.bytes is not None:
        now = float(weights.sum()) * bits[0].bits / 8
        limits.append(Limit("bytes", weights * (wide - bits[0].bits) / 8, settings.bytes - now))
    if settings.bit_operations is not None:
        now = float(macs.sum()) * bits[0].bits * bits[1].bits
        extra = macs * (wide * wide - bits[0].bits * bits[1].bits)
        limits.append(Limit("bit operations", extra, now * (settings.bit_operations - 1)))
    if settings.latency is not None and seconds is not None:
        extra_time, whole = seconds
        limits.append(Limit("latency", np.asarray(extra_time), whole * (settings.latency - 1)))
    chosen = choose(gain, limits)
    rules = []
    for index in chosen:
        pattern = re.escape(low[index].layer)
        if raised is None:
            rules.append(LayerRule(layers=pattern, keep_float=True))
        else:
            rules.append(LayerRule(layers=pattern, weights=str(raised), activations=settings.activations))
    return rules
