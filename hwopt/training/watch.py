"""Alarms while a network trains: what goes wrong, in which layer, at which step, why, and the knob to turn.

Cheap by design: one norm a tensor and step, and a closer look every ``EVERY`` steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn

from hwopt.core.canonical import JSON, finite_or_none

EVERY: Final = 50  # steps between two looks at units and updates
_RECENT: Final = 50
# Healthy networks stay two decades away from each of these; see tests/training/test_watch.py.
EXPLODES_OVER_WEIGHTS: Final = 100.0  # gradient norm over weight norm, of one tensor
EXPLODES_OVER_USUAL: Final = 1000.0  # gradient norm over its median of the last 50 steps
VANISHES: Final = 1e-6  # root mean square of the first matrix' gradient over that of the strongest
VANISHES_FOR: Final = 10  # steps in a row
DEAD_SHARE: Final = 0.5  # of the units of a layer that are zero for every sample and position, at two looks
SPIKE: Final = 10.0  # loss over its recent median
_ACTIVATIONS: Final = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One thing that went wrong."""

    kind: str  # exploding | vanishing | not_finite | dead | spike | start
    step: int
    layer: str | None
    value: float
    cause: str
    knob: str

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "kind": self.kind,
            "step": self.step,
            "layer": self.layer,
            "value": finite_or_none(self.value),
            "cause": self.cause,
            "knob": self.knob,
        }

    def __str__(self) -> str:
        place = f" in {self.layer}" if self.layer else ""
        return f"{self.kind} at step {self.step}{place}: {self.cause}; {self.knob}"


class Watch:
    """Looks at losses, gradients, units and updates of one training."""

    def __init__(self, module: nn.Module, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        self.alarms: list[Alarm] = []
        self.update_ratio: dict[str, float] = {}  # of the last look: |change| / |weight|
        self._names, self._parameters = list(names), list(parameters)
        self._matrices = [i for i, p in enumerate(parameters) if p.dim() > 1]
        self._sizes = [math.sqrt(p.numel()) for p in parameters]
        self._weights: list[float] = []
        self._totals: deque[float] = deque(maxlen=_RECENT)
        self._losses: deque[float] = deque(maxlen=_RECENT)
        self._weak, self._start = 0, 0.0
        self._raised: set[tuple[str, str | None]] = set()
        self._before: list[Tensor] | None = None
        self._looking = False
        self._calls: dict[str, int] = {}  # of each activation, in this forward pass
        self._now: dict[str, Tensor] = {}  # by place: units that are zero in this step
        self._silent: dict[str, Tensor] = {}  # the same at the look before
        self._dead: dict[str, float] = {}  # share of units that were zero at the last two looks
        self._handles = [
            found.register_forward_hook(self._hook(name))
            for name, found in module.named_modules()
            if isinstance(found, _ACTIVATIONS)
        ]
        self._handles.append(module.register_forward_pre_hook(self._new_pass))

    def close(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def begin(self, step: int) -> None:
        """Before the forward pass of a step."""
        self._looking = step % EVERY == 0

    def loss(self, step: int, value: float, expected: float | None) -> None:
        """After the forward pass; ``expected`` is the loss of an even guess, given at the first step."""
        if expected is not None and value > 4 * expected:
            self._raise(
                "start", step, None, value,
                f"the first loss is {value:.3g}, an even guess would have {expected:.3g}",
                "check the scale of inputs and of the last layer, and that labels belong to their samples",
            )  # fmt: skip
        if len(self._losses) == _RECENT:
            usual = median(self._losses)
            if value > SPIKE * usual and value > self._start:
                self._raise(
                    "spike", step, None, value, f"the loss is {value / usual:.0f} times its recent median",
                    "lower the learning rate or clip_norm, and look for odd samples in that batch",
                )  # fmt: skip
        self._losses.append(value)
        if step < 5:
            self._start = max(self._start, value)

    def gradients(self, step: int, norms: Sequence[float]) -> None:
        """After the backward pass, before clipping; a norm for each parameter."""
        if step % 10 == 0 or not self._weights:
            self._weights = torch.stack(torch._foreach_norm(self._parameters)).tolist()
        total = math.sqrt(sum(n * n for n in norms)) if all(map(math.isfinite, norms)) else math.inf
        if not math.isfinite(total):
            first = next(i for i, n in enumerate(norms) if not math.isfinite(n))
            self._raise(
                "not_finite", step, self._names[first], total, "a gradient is NaN or infinite",
                "lower the learning rate, set clip_norm, or use fp32",
            )  # fmt: skip
            return
        self._explosion(step, norms, total)
        self._vanishing(step, norms)
        self._totals.append(total)

    def _explosion(self, step: int, norms: Sequence[float], total: float) -> None:
        over = [norms[i] / max(self._weights[i], 1e-12) for i in self._matrices]
        if over and max(over) > EXPLODES_OVER_WEIGHTS:
            layer = self._names[self._matrices[over.index(max(over))]]
            self._raise(
                "exploding", step, layer, max(over),
                f"the gradient is {max(over):.2g} times as large as the weights",
                "use init: he, batch norm, a lower learning rate or a smaller clip_norm",
            )  # fmt: skip
        elif (
            len(self._totals) >= 10
            and total > EXPLODES_OVER_USUAL * max(median(self._totals), 1e-9)
            and total > 1
        ):
            layer = self._names[max(range(len(norms)), key=lambda i: norms[i])]
            self._raise(
                "exploding", step, layer, total,
                f"the gradients are {total / max(median(self._totals), 1e-9):.2g} times as large as usual",
                "lower the learning rate, or set clip_norm",
            )  # fmt: skip

    def _vanishing(self, step: int, norms: Sequence[float]) -> None:
        if len(self._matrices) < 2:
            return
        means = [norms[i] / self._sizes[i] for i in self._matrices]
        weak = means[0] < VANISHES * max(means)
        self._weak = self._weak + 1 if weak else 0
        if self._weak >= VANISHES_FOR:
            self._raise(
                "vanishing", step, self._names[self._matrices[0]], means[0] / max(means),
                f"its gradient is {means[0] / max(means):.1g} times that of the strongest layer",
                "use relu instead of saturating activations, batch norm, residual connections, or init: he",
            )  # fmt: skip

    def before_update(self, step: int) -> None:
        """Before the optimizer's step."""
        if step % EVERY == 0:
            self._before = [p.detach().clone() for p in self._parameters]

    def after_update(self, step: int) -> None:
        """After it: how far each tensor moved, and which layers are dead."""
        if self._before is not None:
            moved = torch._foreach_norm(
                torch._foreach_sub([p.detach() for p in self._parameters], self._before)
            )
            sizes = torch.stack(torch._foreach_norm(self._before)).tolist()
            ratios = [
                m / s if s > 0 else 0.0 for m, s in zip(torch.stack(moved).tolist(), sizes, strict=True)
            ]
            self.update_ratio = {self._names[i]: ratios[i] for i in self._matrices}
            self._before = None
        if self._looking:
            for place, zero in self._now.items():
                before = self._silent.get(place)
                if before is not None and before.shape == zero.shape:
                    self._dead[place] = float((zero & before).float().mean())
            self._silent, self._now = self._now, {}
            for layer, share in self._dead.items():
                if share > DEAD_SHARE:
                    self._raise(
                        "dead", step, layer, share,
                        f"{share:.0%} of its units were zero for two whole batches, {EVERY} steps apart",
                        "lower the learning rate, or use leaky_relu",
                    )  # fmt: skip
        self._looking = False

    def keep(self, said: Sequence[Alarm]) -> None:
        """Alarms that were raised after a state that is taken up again."""
        self.alarms = [*said] or self.alarms
        self._raised = {(alarm.kind, alarm.layer) for alarm in self.alarms}

    @property
    def dead(self) -> dict[str, float]:
        """Share of dead units by layer, of the last look."""
        return dict(self._dead)

    def state_dict(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "alarms": [alarm.to_json() for alarm in self.alarms],
            "totals": list(self._totals),
            "losses": list(self._losses),
            "weak": self._weak,
            "start": self._start,
            "weights": self._weights,
            "update_ratio": self.update_ratio,
            "dead": self._dead,
            "silent": dict(self._silent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.alarms = [
            Alarm(**{**alarm, "value": math.inf if alarm["value"] is None else alarm["value"]})
            for alarm in state["alarms"]
        ]
        self._raised = {(alarm.kind, alarm.layer) for alarm in self.alarms}
        self._totals.extend(state["totals"])
        self._losses.extend(state["losses"])
        self._weak, self._weights, self._start = state["weak"], state["weights"], state["start"]
        self.update_ratio, self._dead = state["update_ratio"], state["dead"]
        self._silent = dict(state["silent"])

    def _raise(self, kind: str, step: int, layer: str | None, value: float, cause: str, knob: str) -> None:
        """Once for each kind and layer: a flood tells nothing more."""
        if (kind, layer) not in self._raised and len(self.alarms) < 20:
            self._raised.add((kind, layer))
            self.alarms.append(Alarm(kind=kind, step=step, layer=layer, value=value, cause=cause, knob=knob))

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # Of sequences nobody says which axis holds the units.
            if self._looking and module.training and output.dim() in {2, 4}:
                with torch.no_grad():
                    zero = output.amax([d for d in range(output.dim()) if d != 1]) <= 0
                call = self._calls.get(name, 0)  # one module may serve several places
                self._calls[name] = call + 1
                key = f"{name}#{call}" if call else name
                before = self._now.get(key)
                self._now[key] = zero if before is None else zero & before  # over all parts of a batch

        return look

    def _new_pass(self, module: nn.Module, inputs: Any) -> None:
        self._calls.clear()


def int8_readiness(named: Sequence[tuple[str, Tensor]]) -> dict[str, dict[str, JSON]]:
    """How well the matrices would do in eight bits, one scale for each output channel.

    Returns:
        for each name the signal-to-noise ratio in dB, and the greatest weight over the root mean square.
    """
    found: dict[str, dict[str, JSON]] = {}
    for name, weight in named:
        if weight.dim() < 2 or name.endswith("log2_scale"):
            continue
        rows = weight.detach().float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        noise = (rows - (rows / scale).round() * scale).square().sum()
        signal = rows.square().sum()
        if signal > 0:
            ratio = float(signal / noise.clamp(min=1e-30))
            peak = float(rows.abs().max() / rows.square().mean().sqrt())
            found[name] = {"sqnr_db": 10 * math.log10(ratio), "outlier_ratio": peak}
    return found


def fit_verdict(epochs: Sequence[dict[str, Any]], classes: int) -> dict[str, JSON]:
    """Over- or underfitting by fixed thresholds, and the numbers behind it.

    overfitting: the gap of accuracies is over 5 points, or the validation loss ended 10 % above its least while
    the training loss still fell. underfitting: less than halfway from guessing to certainty in training, or, in a
    training of up to three epochs, the training loss fell by over 10 % in the last one without a gap. Else good.
    """
    last = epochs[-1] if epochs else {}
    if "validation_accuracy" not in last or last.get("train_accuracy") is None:
        return {"verdict": "not judged", "why": "no validation split, or no plain training accuracy"}
    gap = float(last["train_accuracy"]) - float(last["validation_accuracy"])
    both = [e for e in epochs if e.get("validation_loss") is not None and e.get("train_loss") is not None]
    losses, train = [float(e["validation_loss"]) for e in both], [float(e["train_loss"]) for e in both]
    risen = losses[-1] / max(min(losses), 1e-12) - 1 if losses else 0.0
    falling = len(train) > 1 and train[-1] < 0.9 * train[-2]
    halfway = (1 + 1 / classes) / 2
    if gap > 0.05 or (losses and risen > 0.1 and train[-1] < train[losses.index(min(losses))]):
        verdict = "overfitting"
        why = f"training is {gap:+.1%} above validation, whose loss ended {risen:.0%} above its least"
    elif float(last["train_accuracy"]) < halfway or (falling and gap < 0.01 and len(train) < 4):
        verdict = "underfitting"
        why = "the training loss is still falling fast" if falling else "training accuracy is low"
    else:
        verdict, why = "good", f"training {gap:+.1%} from validation"
    return {"verdict": verdict, "why": why, "gap": gap, "validation_loss_above_least": risen}
