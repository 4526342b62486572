"""Averages of the weights along the way: exponential, or of the tail of the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hwopt.training.settings import Averaging


class Average:
    """A second set of weights and statistics that follows the first.

    Reference:
        Polyak and Juditsky, 1992 (averaging of iterates); Izmailov et al., UAI 2018 (SWA), section 3.1; for
        ema the decay grows with the steps, min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, settings: Averaging, steps: int) -> None:
        self._settings = settings
        self._start = 0 if settings.kind == "ema" else int(settings.start * steps)
        self.count = 0
        self._shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step ``step``, counted from 0."""
        state = module.state_dict()
        if step < self._start:
            return
        self.count += 1
        if self._settings.kind == "ema":
            share = 1 - min(self._settings.decay, self.count / (9 + self.count))
        else:
            share = 1 / self.count
        floats = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self._shadow[k] for k in floats], [state[k] for k in floats], share)
        for name, value in state.items():
            if not value.is_floating_point():
                self._shadow[name].copy_(value)

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """The averaged weights are the module's for a while."""
        if not self.count:
            yield
            return
        own = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self._shadow)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def settle(self, module: nn.Module) -> None:
        """The averaged weights are the module's from now on."""
        if self.count:
            module.load_state_dict(self._shadow)

    def state_dict(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"count": self.count, "shadow": dict(self._shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.count = state["count"]
        shadow: dict[str, Tensor] = state["shadow"]
        for name, value in shadow.items():
            self._shadow[name].copy_(value)
