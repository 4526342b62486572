"""From a batch to gradients: the loss and what is added to it, precision, accumulation, clipping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.models.sample import trimmed
from hwopt.training import distributed
from hwopt.training.batches import Split, augmented, mixed, seed_generators, step_seed
from hwopt.training.optimizers import Stepping
from hwopt.training.settings import Distillation, FitSettings
from hwopt.training.watch import Watch

_MOST_SKIPPED: Final = 20
_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What to learn from beside the labels."""

    logits: Tensor  # on ``Split.x``, computed once: shape (samples, classes)
    settings: Distillation

    def loss(self, student: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy against the softened teacher, times T²: Hinton et al., 2015, section 2.1."""
        t = self.settings.temperature
        soft = functional.softmax(self.logits[index].to(student.device) / t, dim=1)
        return functional.cross_entropy(student / t, soft) * t * t


class Hook(Protocol):
    """What a stage may do while the loop runs.

    A hook that also has ``state_dict`` and ``load_state_dict`` can be resumed; any other makes a killed
    training start again.
    """

    def epoch(self, epoch: int) -> None:
        """Before epoch ``epoch``, counted from 0."""

    def penalty(self, share: float) -> Tensor | None:
        """A term of the loss; ``share`` is how much of the training is done."""

    def stepped(self) -> None:
        """After a step of the optimizer."""


@dataclass(slots=True, kw_only=True)
class Gradients:
    """Leaves the gradients of a batch in the parameters; what it remembers is of the last batch only."""

    forward: Any  # the network, or what averages its gradients over processes
    data: Split
    settings: FitSettings
    seed: int
    total: int  # steps of the training
    parameters: Sequence[nn.Parameter]
    matrices: Sequence[nn.Parameter]
    layout: torch.memory_format
    device: torch.device
    dtype: torch.dtype
    scaler: Any  # torch.amp.GradScaler
    teacher: Teacher | None
    hooks: Sequence[Hook]
    watch: Watch | None
    right: float = field(default=0.0, init=False)  # samples that were predicted rightly; NaN under mixup
    clipped: bool = field(default=False, init=False)
    finite: bool = field(default=True, init=False)
    skipped: int = field(default=0, init=False)  # steps in a row whose scaled gradients were infinite

    def samples(self, index: Tensor) -> Tensor:
        """As the network takes them."""
        x = trimmed(self.data.x[index])
        if x.is_floating_point():
            x = x.to(self.dtype)
        return x.contiguous(memory_format=self.layout).to(self.device)

    def compute(self, index: Tensor, whole: int, step: int, optimizers: Any, *, first: bool) -> float:
        """The mean loss; ``index`` is this process' share of a batch of ``whole`` samples.

        Args:
            first: whether it is the first look at this batch; L-BFGS and SAM look again.
        """
        settings = self.settings
        # Dropout; the same at every look, another one in every process.
        seed_generators(step_seed(self.seed, step, 3 + 16 * distributed.rank()))
        optimizers.zero_grad()
        # Parts of equal size, so that none is a single sample, which batch norm could not take.
        parts = min(settings.accumulate, max(1, len(index) // 2))
        total, right = 0.0, 0.0
        for number, part in enumerate(index.tensor_split(parts)):
            share = len(part) / len(index)
            with ExitStack() as stack:
                if settings.precision in _DTYPES:
                    stack.enter_context(torch.autocast(self.device.type, _DTYPES[settings.precision]))
                if number < parts - 1:
                    stack.enter_context(distributed.no_sync(self.forward))
                loss, hits = self._loss(part, step, number, first=first)
                # Gradients are averaged over processes, which may hold unequal shares of a batch.
                scale = share * len(index) * distributed.world() / whole
                self._backward(self.scaler.scale(loss * scale), create_graph=optimizers.create_graph)
            total += float(loss.detach()) * share
            right += hits
        if first:
            self.right = right
        if optimizers.stepping is Stepping.CLOSURE:
            total += self._penalties()  # a line search wants loss and gradient to be of one function
        self._care(step, optimizers, first=first)
        return distributed.mean(total, len(index), whole)

    def _penalties(self) -> float:
        settings = self.settings
        with torch.no_grad():
            return sum(
                settings.l1 * float(m.abs().sum()) + settings.l2 / 2 * float(m.square().sum())
                for m in (self.matrices if settings.l1 or settings.l2 else ())
            )

    def _backward(self, loss: Any, *, create_graph: bool) -> None:
        if not create_graph:
            loss.backward()
            return
        with warnings.catch_warnings():  # of a reference cycle, which zero_grad breaks before the next step
            warnings.simplefilter("ignore")
            loss.backward(create_graph=True)

    def _loss(self, part: Tensor, step: int, number: int, *, first: bool) -> tuple[Tensor, float]:
        settings = self.settings
        x, y = self.samples(part), self.data.y[part].to(self.device)
        seed = step_seed(self.seed, step * 1024 + number, 4 + 16 * distributed.rank())
        if settings.augment is not None:
            x = augmented(x, settings.augment, torch.Generator().manual_seed(seed))
            x = x.contiguous(memory_format=self.layout)
        partner, own = None, 1.0
        if settings.mixup and len(part) > 1:
            x, partner, own = mixed(x, settings.mixup, seed)
        logits = self.forward(x).to(self.dtype)
        loss = functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        if partner is not None:
            other = functional.cross_entropy(logits, y[partner], label_smoothing=settings.label_smoothing)
            loss = own * loss + (1 - own) * other
        if self.teacher is not None:
            weight = self.teacher.settings.weight
            loss = (1 - weight) * loss + weight * self.teacher.loss(logits, part)
        elif self.watch is not None and step == 0 and number == 0 and first and partner is None:
            self.watch.loss(0, float(loss.detach()), math.log(logits.shape[1]))
        for hook in self.hooks:
            term = hook.penalty(step / self.total)
            loss = loss if term is None else loss + term
        right = float((logits.detach().argmax(1) == y).sum()) if partner is None else math.nan
        return loss, right

    def _care(self, step: int, optimizers: Any, *, first: bool) -> None:
        """Penalties on weights, then clipping, of unscaled gradients."""
        settings = self.settings
        if self.scaler.is_enabled():
            for optimizer in optimizers.all():
                self.scaler.unscale_(optimizer)
        with torch.no_grad():
            for matrix in self.matrices if settings.l1 or settings.l2 else ():
                if matrix.grad is not None:
                    matrix.grad.add_(matrix.sign(), alpha=settings.l1).add_(matrix, alpha=settings.l2)
            none = torch.zeros((), dtype=self.dtype, device=self.device)
            gradients = [none if p.grad is None else p.grad.detach() for p in self.parameters]
            norms = torch.stack(torch._foreach_norm(gradients))
            total = float(torch.linalg.vector_norm(norms))
            # Under loss scaling infinite gradients are part of the search for the scale, which skips the step.
            searching = self.scaler.is_enabled() and not math.isfinite(total)
            self.skipped = self.skipped + 1 if searching else 0
            self.finite = math.isfinite(total) or (searching and self.skipped < _MOST_SKIPPED)
            if self.watch is not None and first and not (searching and self.finite):
                self.watch.gradients(step, norms.tolist())
            if optimizers.stepping is Stepping.CLOSURE:
                return  # its line search must see the true gradient
            limit = settings.clip_norm or math.inf
            clip = math.isfinite(total) and total > limit
            if clip:
                torch._foreach_mul_(gradients, limit / (total + 1e-6))
            if first:
                self.clipped = clip
            if settings.clip_value is not None:
                torch._foreach_clamp_min_(gradients, -settings.clip_value)
                torch._foreach_clamp_max_(gradients, settings.clip_value)
