"""The loop: plain torch, classification; one process, or several under torchrun.

Whatever is random in a step is a pure function of (seed, step): the order of samples, augmentation, dropout.
So a training that was killed goes on from its last snapshot to the same weights, bit for bit, on a CPU with the
same number of threads.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.ledger import Ledger, NoLedger
from hwopt.core.progress import clock, sparkline
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError, StageFailedError
from hwopt.training import distributed, snapshot
from hwopt.training.average import Average
from hwopt.training.batches import Split, batch_count, batches
from hwopt.training.build import Optimizers, smoke_test
from hwopt.training.conditions import check, fingerprint
from hwopt.training.evaluation import evaluate, refresh_batch_norm
from hwopt.training.optimizers import Stepping
from hwopt.training.schedules import Position, warm_up
from hwopt.training.settings import FitSettings
from hwopt.training.step import Gradients, Hook, Teacher
from hwopt.training.watch import EVERY, Watch, fit_verdict, int8_readiness

SNAPSHOT_SECONDS: Final = float(os.environ.get("HWOPT_TEST_SNAPSHOT_SECONDS", "20"))
_SPEAK_SECONDS: Final = 10.0
_GOOD_EVERY: Final = 100  # steps between two states to go back to on divergence
_DIVERGES: Final = 4.0  # smoothed loss over its least so far; and over where it began


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened, one entry an epoch."""

    epochs: list[dict[str, JSON]]
    best_epoch: int
    steps: int
    cpu_seconds: float  # of all threads of this process
    events: dict[str, JSON] = field(default_factory=dict)  # alarms, halvings, groups, verdict, readiness

    @property
    def cost(self) -> dict[str, JSON]:
        """What the training cost, for the record."""
        return {"cpu_seconds": self.cpu_seconds, "steps": self.steps}


class Training:
    """One training in progress; ``steps()`` runs it, and may be left at any step.

    Raises:
        ConfigError: settings that do not fit this network or these samples.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Split,
        settings: FitSettings,
        *,
        seed: int,
        progress: Progress,
        label: str,
        teacher: Teacher | None = None,
        hooks: Sequence[Hook] = (),
        keep: Path | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.module, self.data, self.settings = module, data, settings
        self._seed, self._progress, self._label = seed, progress, label
        self._hooks = list(hooks)
        self._ledger: Ledger = ledger or NoLedger()
        self._size = len(data.x) if settings.batch_size == "full" else settings.batch_size
        check(module, data, settings, self._size, label)
        # Channels last is the layout of oneDNN's kernels: up to twice as fast on depthwise networks. L-BFGS wants
        # its parameters in one row.
        flat = settings.optimizer.spec.stepping is Stepping.CLOSURE or data.x.dim() != 4
        self._layout = torch.contiguous_format if flat else torch.channels_last
        self._device = distributed.device()
        double = settings.precision == "fp64"
        self._dtype = torch.float64 if double else torch.float32
        _move(module, self._device, self._layout, self._dtype)
        if settings.optimizer.spec.options is None or any(
            g.optimizer and g.optimizer.spec.options is None for g in settings.groups
        ):
            few = torch.arange(min(8, len(data.x)))
            x = data.x[few].to(self._dtype) if data.x.is_floating_point() else data.x[few]
            smoke_test(module, settings, x.to(self._device), data.y[few].to(self._device))
        self.optimizers = Optimizers(module, settings)
        self._still = self.optimizers.still_norms(module)  # their statistics stay
        by_name = dict(module.named_parameters())
        self._trainable = {name: p.requires_grad for name, p in by_name.items()}
        held = set(self.optimizers.frozen)
        self._names = [n for n, trains in self._trainable.items() if trains and n not in held]
        self._parameters = [by_name[name] for name in self._names]
        role = self.optimizers.role
        self._matrices = [p for n, p in zip(self._names, self._parameters, strict=True) if role[n].matrix]
        for name in self.optimizers.frozen:
            by_name[name].requires_grad_(False)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "fp16")
        self.per_epoch = max(1, batch_count(len(data.x), self._size, distributed.least()))
        total = self.per_epoch * settings.epochs
        self.total = min(total, settings.max_steps or total)
        self._warmup = settings.schedule.warmup_steps(self.total)
        if self._warmup >= self.total > 1:
            raise ConfigError(
                f"{label}: a warm-up of {self._warmup} steps in a training of {self.total}",
                fix="lower schedule.warmup",
            )
        self._schedule_options = settings.schedule.checked
        self._average = Average(module, settings.average, self.total) if settings.average else None
        self._watch = Watch(module, self._names, self._parameters) if settings.watch else None
        self._gradients = Gradients(
            forward=distributed.wrapped(module, self._device),
            data=data,
            settings=settings,
            seed=seed,
            total=self.total,
            parameters=self._parameters,
            matrices=self._matrices,
            layout=self._layout,
            device=self._device,
            dtype=self._dtype,
            scaler=self._scaler,
            teacher=teacher,
            hooks=self._hooks,
            watch=self._watch,
        )
        # All of the following is in a snapshot.
        self.step = 0
        self.epochs: list[dict[str, JSON]] = []
        self._rate, self._halvings = 1.0, list[dict[str, JSON]]()
        self._best: tuple[float, int, dict[str, Tensor] | None] = (math.inf, 0, None)
        self._sums, self._smooth = [0.0, 0.0, 0.0], [0.0, 0.0, math.inf, 0.0]
        self._clipped, self._stopped, self._spent = 0, False, 0.0
        self._told = 0  # alarms that were said
        self._good: dict[str, Any] | None = None
        # Only what can be brought back is kept, on disk and in memory.
        self._returns = self.optimizers.resumes and all(hasattr(hook, "load_state_dict") for hook in hooks)
        self._keep = keep if self._returns and distributed.world() == 1 else None
        self._fingerprint = fingerprint(module, data, settings, seed, label) if self._keep is not None else ""
        self._resumed_at: int | None = None

    def steps(self) -> Iterator[int]:
        """Run; yields the number of finished steps after each, with everything in order to look or to leave."""
        self._started = self._spoke = self._saved = time.monotonic()
        self._cpu = time.process_time()
        self._resume()
        self._first = self.step
        if self.step == 0:
            self._progress(f"{self._label}: {self.optimizers.text()}")
        while self.step < self.total and not self._stopped:
            epoch, skip = divmod(self.step, self.per_epoch)
            for hook in self._hooks:
                hook.epoch(epoch)
            self._set_training()
            order = batches(len(self.data.x), self._size, self._seed, epoch, distributed.least())
            for index in itertools.islice(order, skip, None):
                if not self._one(distributed.mine(index), len(index)):
                    break  # back at an earlier step
                if self.step % self.per_epoch == 0 or self.step == self.total:
                    self._end_of_epoch(epoch)
                self._snapshot()
                yield self.step
                if self.step == self.total or self._stopped:
                    break

    def finish(self) -> History:
        """Settle on the weights to ship; call it once, after ``steps()``."""
        self.optimizers.switch(training=False)
        if self._average is not None:
            self._average.settle(self.module)
        if self._best[2] is not None:
            self.module.load_state_dict(self._best[2])
        if self._watch is not None:
            self._watch.close()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        _move(self.module, torch.device("cpu"), torch.contiguous_format, torch.float32)
        if self._average is not None and self._average.count:
            # The average has statistics of its own.
            refresh_batch_norm(self.module, self.data.x, but=self._still)
        self.module.train(False)
        return History(
            epochs=self.epochs,
            best_epoch=self._best[1] + 1 if math.isfinite(self._best[0]) else len(self.epochs),
            steps=self.step,
            cpu_seconds=self._spent + time.process_time() - self._cpu,
            events=self._events(),
        )

    def _events(self) -> dict[str, JSON]:
        classes = max(2, int(self.data.y.max()) + 1) if len(self.data.y) else 2
        events: dict[str, JSON] = {
            "parameter_groups": list[JSON](self.optimizers.table),
            "frozen": len(self.optimizers.frozen),
            "halvings": list[JSON](self._halvings),
            "clipped_share": self._clipped / max(1, self.step),
            "resumed_at": self._resumed_at,
            "fit": fit_verdict(self.epochs, classes),
        }
        if self._watch is not None:
            events["alarms"] = [alarm.to_json() for alarm in self._watch.alarms]
            events["update_ratio"] = {k: finite_or_none(v) for k, v in self._watch.update_ratio.items()}
            events["dead_units"] = dict[str, JSON](self._watch.dead)
            events["int8_readiness"] = dict[str, JSON](int8_readiness(list(self.module.named_parameters())))
        return events

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The network with the weights that would ship now, in evaluation mode."""
        self.optimizers.switch(training=False)
        distributed.share_buffers(self.module)
        with self._average.in_place(self.module) if self._average is not None else nullcontext():
            self.module.train(False)
            yield self.module
        self._set_training()

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of the weights that would ship now."""
        with self.evaluating() as module:
            return evaluate(module, x, y, self._dtype, self._device)

    def _set_training(self) -> None:
        self.module.train()
        for module in self._still:
            module.train(False)
        self.optimizers.switch(training=True)

    def _one(self, index: Tensor, whole: int) -> bool:
        """One step; False where it diverged and an earlier state was taken up."""
        settings, step, optimizers = self.settings, self.step, self.optimizers
        due = self._good is None or (step % _GOOD_EVERY == 0 and step > self._good["step"])
        if settings.halvings and self._returns and due and self._healthy():
            self._good = copy.deepcopy(self._state())
        factor = self._factor()
        optimizers.set_factor(factor * self._rate)
        if self._watch is not None:
            self._watch.begin(step)
        first: list[float] = []

        def closure() -> Tensor:
            loss = self._gradients.compute(index, whole, step, optimizers, first=not first)
            first.append(loss)
            return torch.tensor(loss)

        if optimizers.stepping is not Stepping.CLOSURE:
            closure()
            if not math.isfinite(first[0]) or not self._gradients.finite:
                if self._scaler.is_enabled():
                    self._scaler.update()  # this step ends here for it, too
                return self._diverged(first[0])
        if self._watch is not None:
            self._watch.before_update(step)
        if optimizers.stepping is Stepping.PLAIN:
            for optimizer in optimizers.all():
                self._scaler.step(optimizer)
            self._scaler.update()
        else:
            for optimizer in optimizers.all():
                if factor:  # the line search of L-BFGS divides by the rate
                    optimizer.step(closure)  # type: ignore[arg-type]
                elif not first:
                    closure()
            if not math.isfinite(first[0]):
                return self._diverged(first[0])
        if settings.max_weight is not None:
            with torch.no_grad():
                for matrix in self._matrices:
                    matrix.clamp_(-settings.max_weight, settings.max_weight)
        if self._watch is not None:
            self._watch.after_update(step)
        if self._average is not None:
            self._average.update(self.module, step)
        for hook in self._hooks:
            hook.stepped()
        return self._after(first[0], len(index))

    def _factor(self) -> float:
        """Of the schedule at this step: a pure function of where the training stands."""
        schedule = self.settings.schedule
        if self.step < self._warmup:
            return warm_up(self.step, self._warmup)
        losses = [e["validation_loss"] for e in self.epochs if e.get("validation_loss") is not None]
        at = Position(
            step=self.step,
            steps=self.total,
            per_epoch=self.per_epoch,
            warmup=self._warmup,
            losses=tuple(float(str(v)) for v in losses) if schedule.spec.needs_validation else (),
        )
        return schedule.floor + (1 - schedule.floor) * schedule.spec.factor(at, self._schedule_options)

    def _healthy(self) -> bool:
        mean, weight, least, _ = self._smooth
        return weight == 0 or mean / weight <= 2 * least

    def _after(self, loss: float, n: int) -> bool:
        """Book-keeping of a finished step; False where the loss has run away."""
        self._smooth[0] = 0.9 * self._smooth[0] + 0.1 * loss
        self._smooth[1] = 0.9 * self._smooth[1] + 0.1
        smoothed = self._smooth[0] / self._smooth[1]
        if self.step < 10:
            self._smooth[3] = max(self._smooth[3], loss)  # where it began
        if smoothed > _DIVERGES * self._smooth[2] and smoothed > self._smooth[3]:
            return self._diverged(smoothed)
        self._smooth[2] = min(self._smooth[2], smoothed)
        if self._watch is not None:
            if self.step:
                self._watch.loss(self.step, loss, None)
            self._tell_alarms()
        self._sums = [a + b for a, b in zip(self._sums, (loss * n, self._gradients.right, n), strict=True)]
        self._clipped += self._gradients.clipped
        self.step += 1
        if self.step % 10 == 0:
            self._ledger.log(self.step, {"loss": loss})
        if self._watch is not None and self.step % EVERY == 1:
            self._ledger.log(self.step, {f"update_ratio/{k}": v for k, v in self._watch.update_ratio.items()})
        now = time.monotonic()
        if now - self._spoke > _SPEAK_SECONDS:
            self._spoke = now
            self._progress(
                f"{self._label}: step {self.step}/{self.total}, loss {smoothed:.4f}, {self._left(now)} left"
            )
        return True

    def _left(self, now: float) -> str:
        done = max(1, self.step - self._first)
        return clock((now - self._started) / done * (self.total - self.step))

    def _tell_alarms(self) -> None:
        if self._watch is None:
            return
        for alarm in self._watch.alarms[self._told :]:
            self._progress(f"{self._label}: alarm: {alarm}")
            self._ledger.note(alarm.step, f"alarm: {alarm}")
        self._told = len(self._watch.alarms)

    def _diverged(self, value: float) -> bool:
        """Go back to the last good state with half the rate; always False."""
        self._tell_alarms()
        step, tried = self.step, len(self._halvings)
        if tried >= self.settings.halvings or self._good is None:
            steep = math.isfinite(value) and not self._gradients.finite
            what = "the gradients became infinite" if steep else f"the loss became {value:.4g}"
            said = f", after {tried} times half the learning rate" if tried else ""
            raise StageFailedError(
                f"{self._label}: {what} at step {step} (epoch {step // self.per_epoch + 1}){said}",
                fix="lower train.optimizer.lr, or set clip_norm"
                + ("".join(f"; {a.knob}" for a in self._watch.alarms[:1]) if self._watch else ""),
            )
        # A copy: loading hands tensors over, and this state may be needed once more.
        state = copy.deepcopy(self._good)
        state["halvings"] = [
            *self._halvings, {"at": step, "back_to": state["step"], "loss": finite_or_none(value)},
        ]  # fmt: skip
        state["rate"] = self._rate / 2
        self._load(state)
        self._ledger.rewind(self.step, notes=True)
        text = f"diverged at step {step} (loss {value:.4g}): back to step {self.step} with half the learning rate"
        self._ledger.note(self.step, text)
        self._progress(f"{self._label}: {text}")
        return False

    def _end_of_epoch(self, epoch: int) -> None:
        loss_sum, right, n = self._sums
        self._sums = [0.0, 0.0, 0.0]
        right, n, loss_sum = (distributed.total(v) for v in (right, n, loss_sum))
        loss, accuracy = loss_sum / n, right / n
        entry: dict[str, JSON] = {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": finite_or_none(loss),
            "train_accuracy": finite_or_none(accuracy),
            "lr": max(g["lr"] for o in self.optimizers.all() for g in o.param_groups),
        }
        text = f"{self._label}: epoch {epoch + 1}/{self.settings.epochs}, loss {loss:.4f}"
        patience = self.settings.early_stopping.patience if self.settings.early_stopping else None
        if len(self.data.x_validation):
            with self.evaluating() as module:
                found, accuracy = evaluate(
                    module, self.data.x_validation, self.data.y_validation, self._dtype, self._device
                )
                found = distributed.agreed(found)
                entry |= {"validation_loss": finite_or_none(found), "validation_accuracy": accuracy}
                text += f", validation accuracy {accuracy:.2%}"
                if found < self._best[0]:
                    best = copy.deepcopy(module.state_dict()) if patience is not None else None
                    self._best = (found, epoch, best)
        self.epochs.append(entry)
        curve = sparkline([float(str(e["train_loss"])) for e in self.epochs if e["train_loss"] is not None])
        now = time.monotonic()
        self._spoke = now
        self._progress(f"{text}  {curve}  {self._left(now)} left")
        self._ledger.log(self.step, {k: float(v) for k, v in entry.items() if isinstance(v, float)})
        if self._watch is not None:
            ready = int8_readiness(list(zip(self._names, self._parameters, strict=True)))
            self._ledger.log(
                self.step, {f"int8_sqnr_db/{k}": float(str(v["sqnr_db"])) for k, v in ready.items()}
            )
        if patience is not None and epoch - self._best[1] >= patience and self.step < self.total:
            self._progress(f"{self._label}: stopped early; best epoch was {self._best[1] + 1}")
            self._ledger.note(self.step, f"stopped early; best epoch was {self._best[1] + 1}")
            self._stopped = True

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epochs": self.epochs,
            "rate": self._rate,
            "halvings": self._halvings,
            "best": self._best,
            "sums": self._sums,
            "smooth": self._smooth,
            "clipped": self._clipped,
            "stopped": self._stopped,
            "spent": self._spent + time.process_time() - self._cpu,
            "module": dict(self.module.state_dict()),
            "optimizers": self.optimizers.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state_dict() if self._average is not None else None,
            "watch": self._watch.state_dict() if self._watch is not None else None,
            "hooks": [hook.state_dict() if hasattr(hook, "state_dict") else None for hook in self._hooks],
        }

    def _load(self, state: dict[str, Any]) -> None:
        """Everything but ``spent`` and ``good``."""
        self.module.load_state_dict(state["module"])
        self.optimizers.load_state_dict(state["optimizers"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._watch is not None:
            said = self._watch.alarms
            self._watch.load_state_dict(state["watch"])
            self._watch.keep(said)  # what was said stays said
        for hook, one in zip(self._hooks, state["hooks"], strict=True):
            if one is not None:
                hook.load_state_dict(one)  # type: ignore[attr-defined]
        self.step, self.epochs = state["step"], list(state["epochs"])
        self._rate, self._halvings = state["rate"], list(state["halvings"])
        self._best, self._sums, self._smooth = (
            tuple(state["best"]),
            list(state["sums"]),
            list(state["smooth"]),
        )
        self._clipped, self._stopped = state["clipped"], state["stopped"]

    def _snapshot(self) -> None:
        now = time.monotonic()
        due = now - self._saved >= SNAPSHOT_SECONDS and self.step < self.total
        if self._keep is not None and due:
            state = {**self._state(), "good": self._good}
            snapshot.save(self._keep / "training.safetensors", state, self._fingerprint)
            self._saved = now

    def _resume(self) -> None:
        state = None
        if self._keep is not None:
            state = snapshot.load(self._keep / "training.safetensors", self._fingerprint)
        if state is None:
            self._ledger.rewind(0)
            return
        self._set_training()
        self._load(state)
        self._spent, self._good = state["spent"], state["good"]
        self._told = len(self._watch.alarms) if self._watch is not None else 0
        self._resumed_at = self.step
        self._ledger.rewind(self.step)
        self._progress(f"{self._label}: goes on after step {self.step} of {self.total}")


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
    keep: Path | None = None,
    ledger: Ledger | None = None,
) -> History:
    """Train ``module`` in place; the best weights by validation loss where early stopping is on.

    Args:
        keep: a folder that outlives a kill; the training goes on from what lies there.
    Raises:
        ConfigError: settings that do not fit the network or the samples.
        StageFailedError: the training diverged, and half the rate did not help.
    """
    training = Training(
        module, data, settings, seed=seed, progress=progress, label=label, teacher=teacher, hooks=hooks,
        keep=keep, ledger=ledger,
    )  # fmt: skip
    for _ in training.steps():
        pass
    return training.finish()


def _move(module: Any, device: torch.device, layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Weights to a device, a memory layout, a type; torch's stubs know the layout for tensors only."""
    module.to(device=device, dtype=dtype, memory_format=layout)
