"""Muon for hidden matrices, AdamW for the rest: one optimizer, one checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_LEAST_NORM: Final = 1e-7


def orthogonalized(gradient: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """About U·Vᵀ of a matrix, by the quintic Newton-Schulz iteration.

    Reference:
        Jordan et al., 2024 (Muon: an optimizer for hidden layers), algorithm 2; the same numbers as torch's
        ``Muon`` where ``dtype`` is bfloat16.
    """
    a, b, c = _COEFFICIENTS
    tall = gradient.size(0) > gradient.size(1)
    x = (gradient.T if tall else gradient).to(dtype, copy=True)
    x.div_(x.norm().clamp(min=_LEAST_NORM))
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@cache
def faster_dtype() -> str:
    """float32, or bfloat16 where it multiplies matrices at least half as fast again: a probe of about 20 ms.

    The margin keeps two runs on one machine from deciding differently.
    """
    times: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        x = torch.ones(128, 128, dtype=getattr(torch, name))
        x @ x  # the first product sets up
        started = time.perf_counter()
        for _ in range(10):
            x @ x
        times[name] = time.perf_counter() - started
    return "bfloat16" if 1.5 * times["bfloat16"] < times["float32"] else "float32"


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized for groups marked ``matrices``, AdamW for the others.

    Convolution kernels count as matrices of output channels × the rest.

    Args:
        lr: of the matrices; its update has unit spectral norm, times sqrt(max(1, rows / columns)).
        rest_lr: of AdamW at the same point of the schedule; None: a twentieth of ``lr``.
        dtype: of the iteration; None: the faster one, found by a probe and kept in the state.
    Reference:
        Jordan et al., 2024, algorithm 1; Loshchilov and Hutter, ICLR 2019, algorithm 2 for the rest.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        rest_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        dtype: str | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_steps": ns_steps,
                "betas": betas,
                "eps": eps,
                "matrices": False,
                "dtype": dtype or faster_dtype(),
                "rest_scale": 0.05
                if rest_lr is None
                else rest_lr / lr,  # the schedule moves lr, and the rest follows
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all groups."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._muon if group["matrices"] else self._adamw)(parameter, group)

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            return
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        flat = orthogonalized(update.flatten(1), group["ns_steps"], getattr(torch, group["dtype"]))
        rows, columns = flat.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        change = flat.to(parameter.dtype).reshape(parameter.shape)
        parameter.add_(change, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))

    def _adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            return
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        rate = group["lr"] * group["rest_scale"]
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], deviation, value=-rate / (1 - first ** state["step"]))
