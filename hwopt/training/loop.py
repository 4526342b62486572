"""The loop: plain torch, classification, one process.

The order of samples is a pure function of (seed, epoch), so that a run repeats bit for bit on a CPU with
the same number of threads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.dataset import Dataset
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError, StageFailedError
from hwopt.plugins import load_reference, resolve
from hwopt.training.optimizers import OptimizerSpec
from hwopt.training.schedules import warm_up
from hwopt.training.settings import Distillation, FitSettings, OptimizerSettings

_EVALUATION_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Tensors to train on and to validate on."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened, one entry an epoch."""

    epochs: list[dict[str, JSON]]
    best_epoch: int
    steps: int
    cpu_seconds: float  # of all threads of this process

    @property
    def cost(self) -> dict[str, JSON]:
        """What the training cost, for the record."""
        return {"cpu_seconds": self.cpu_seconds, "steps": self.steps}


def split(dataset: Dataset, share: float, seed: int) -> Split:
    """Set a share of the training split aside for validation; the test split is not touched."""
    order = np.random.default_rng([seed, 0]).permutation(len(dataset.x_train))
    held = round(len(order) * share)
    train, validation = order[held:], order[:held]
    if len(train) == 0:
        raise ConfigError("no training sample is left after setting the validation share aside")
    return Split(
        x=torch.from_numpy(dataset.x_train[train]),
        y=torch.from_numpy(dataset.y_train[train]),
        x_validation=torch.from_numpy(dataset.x_train[validation]),
        y_validation=torch.from_numpy(dataset.y_train[validation]),
    )


def batches(n: int, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Index tensors of one epoch; a last batch of a single sample is dropped (batch norm needs two)."""
    order = torch.from_numpy(np.random.default_rng([seed, 1, epoch]).permutation(n))
    for chunk in torch.split(order, size):
        if len(chunk) > 1 or n == 1:
            yield chunk


def build_optimizer(
    settings: OptimizerSettings, groups: Sequence[dict[str, object]]
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over parameter groups."""
    spec: OptimizerSpec = resolve("optimizer", settings.name)
    options = {**spec.fixed, **settings.options}
    if isinstance(options.get("betas"), list):
        options["betas"] = tuple(options["betas"])
    optimizer: torch.optim.Optimizer = load_reference(spec.reference)(
        list(groups), lr=settings.lr or spec.default_lr, **options
    )
    return optimizer


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay on matrices and convolution kernels; none on biases, norms and quantization scales."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        is_matrix = parameter.dim() > 1 and not name.endswith("log2_scale")
        (decayed if is_matrix else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Outputs over many samples, in evaluation mode, batch by batch."""
    was_training = module.training
    module.train(False)
    with torch.no_grad():
        result = torch.cat([module(chunk) for chunk in torch.split(x, _EVALUATION_BATCH)])
    module.train(was_training)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What to learn from beside the labels."""

    logits: Tensor  # on ``Split.x``, computed once: shape (samples, classes)
    settings: Distillation

    def loss(self, student: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy against the softened teacher, times T²: Hinton et al., 2015, section 2.1."""
        t = self.settings.temperature
        soft = functional.softmax(self.logits[index] / t, dim=1)
        return functional.cross_entropy(student / t, soft) * t * t


class Hook(Protocol):
    """What a stage may do while the loop runs."""

    def epoch(self, epoch: int) -> None:
        """Before epoch ``epoch``, counted from 0."""

    def penalty(self, share: float) -> Tensor | None:
        """A term of the loss; ``share`` is how much of the training is done."""

    def stepped(self) -> None:
        """After a step of the optimizer."""


def fit(
    module: nn.Module,
    data: Split,
    settings: FitSettings,
    *,
    seed: int,
    progress: Progress,
    label: str,
    teacher: Teacher | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train ``module`` in place; the best weights by validation loss where early stopping is on.

    Raises:
        StageFailedError: the loss became NaN or infinite.
    """
    torch.manual_seed(seed)  # dropout
    started = time.process_time()
    # Channels last is the layout of oneDNN's kernels: up to twice as fast on depthwise networks.
    layout = torch.channels_last if data.x.dim() == 4 else torch.contiguous_format
    _lay_out(module, layout)
    optimizer = build_optimizer(settings.optimizer, parameter_groups(module, settings.optimizer.weight_decay))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    schedule = resolve("schedule", settings.schedule.name)
    n = len(data.x)
    per_epoch = sum(1 for _ in batches(n, settings.batch_size, seed, 0))
    total, done = per_epoch * settings.epochs, 0
    epochs: list[dict[str, JSON]] = []
    best_loss, best_epoch = float("inf"), 0
    best_state: dict[str, Tensor] | None = None
    for epoch in range(settings.epochs):
        for hook in hooks:
            hook.epoch(epoch)
        module.train()
        loss_sum = 0.0
        for index in batches(n, settings.batch_size, seed, epoch):
            factor = max(schedule(done / total), settings.schedule.floor)
            factor *= warm_up(done, round(settings.schedule.warmup * total))
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            logits = module(data.x[index].contiguous(memory_format=layout))
            loss = functional.cross_entropy(logits, data.y[index], label_smoothing=settings.label_smoothing)
            if teacher is not None:
                weight = teacher.settings.weight
                loss = (1 - weight) * loss + weight * teacher.loss(logits, index)
            for hook in hooks:
                term = hook.penalty(done / total)
                loss = loss if term is None else loss + term
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
            optimizer.step()
            for hook in hooks:
                hook.stepped()
            value = float(loss.detach())
            if not np.isfinite(value):
                raise StageFailedError(
                    f"{label}: the loss became {value} at step {done} (epoch {epoch + 1})",
                    fix="lower train.optimizer.lr, or set clip_norm",
                )
            loss_sum += value * len(index)
            done += 1
        entry: dict[str, JSON] = {"epoch": epoch + 1, "train_loss": finite_or_none(loss_sum / n)}
        text = f"{label}: epoch {epoch + 1}/{settings.epochs}, loss {loss_sum / n:.4f}"
        if len(data.x_validation):
            validation_loss, accuracy = evaluate(module, data.x_validation, data.y_validation)
            entry |= {"validation_loss": finite_or_none(validation_loss), "validation_accuracy": accuracy}
            text += f", validation accuracy {accuracy:.2%}"
            if validation_loss < best_loss:
                best_loss, best_epoch = validation_loss, epoch
                if settings.early_stopping is not None:
                    best_state = copy.deepcopy(module.state_dict())
        epochs.append(entry)
        progress(text)
        if settings.early_stopping is not None and epoch - best_epoch >= settings.early_stopping.patience:
            progress(f"{label}: stopped early; best epoch was {best_epoch + 1}")
            break
    if best_state is not None:
        module.load_state_dict(best_state)
    _lay_out(module, torch.contiguous_format)
    module.train(False)
    return History(
        epochs=epochs,
        best_epoch=best_epoch + 1,
        steps=done,
        cpu_seconds=time.process_time() - started,
    )


def _lay_out(module: Any, layout: torch.memory_format) -> None:
    """Move the weights to a memory layout; torch's type stubs know the argument for tensors only."""
    module.to(memory_format=layout)


def evaluate(module: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits = logits_of(module, x)
    loss = float(functional.cross_entropy(logits, y))
    return loss, float((logits.argmax(1) == y).float().mean())


def refresh_batch_norm(module: nn.Module, x: Tensor, *, limit: int = 2048) -> None:
    """Estimate batch-norm statistics anew from ``limit`` random samples, as a plain average.

    Needed after every change of structure: the old statistics belong to channels in other company.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    was_training = module.training
    module.train(False)  # dropout stays off; only the norms look at their batch
    for norm in norms:
        norm.train()
    # In random order: a data set sorted by class would give the statistics of its first class.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x))[:limit])
    with torch.no_grad():
        for chunk in torch.split(x[order], 128):
            if len(chunk) > 1:
                module(chunk)
    module.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
