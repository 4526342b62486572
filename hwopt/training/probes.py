"""Questions to a network before hours are spent: does it learn, at which batch, how noisy is its gradient."""

from __future__ import annotations

import copy
import math
import resource
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.errors import StageFailedError
from hwopt.training.batches import Split
from hwopt.training.choices import ScheduleSettings
from hwopt.training.loop import fit
from hwopt.training.settings import FitSettings

_ONE_BATCH: Final = 16  # samples to learn by heart
_HEART_STEPS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Two checks that catch most broken set-ups."""

    first_loss: float
    even_guess: float  # ln(classes)
    by_heart: float  # share of one batch that is right after some steps on nothing else
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "first_loss": finite_or_none(self.first_loss),
            "even_guess": self.even_guess,
            "by_heart": self.by_heart,
            "problems": list(self.problems),
        }


def preflight(module: nn.Module, data: Split, settings: FitSettings, classes: int, *, seed: int) -> Preflight:
    """Loss of the first batch against ln(classes), and whether one batch can be learnt by heart; on copies."""
    trial = copy.deepcopy(module).train()
    few = Split(
        x=data.x[:_ONE_BATCH], y=data.y[:_ONE_BATCH], x_validation=data.x[:0], y_validation=data.y[:0]
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        n = min(len(data.x), 128)
        first = float(functional.cross_entropy(trial(data.x[:n]), data.y[:n]))
    given = FitSettings(
        epochs=_HEART_STEPS, batch_size="full", validation_share=0.0, halvings=0, watch=False,
        schedule=ScheduleSettings(name="constant"), precision=settings.precision,
    )  # fmt: skip
    problems = []
    right = 0.0
    try:
        fit(trial, few, given, seed=seed, progress=silent, label="preflight")
        with torch.no_grad():
            right = float((trial(few.x).argmax(1) == few.y).float().mean())
    except StageFailedError as error:
        problems.append(f"one batch cannot be learnt: {error.problems[0].problem}")
    even = math.log(classes)
    if not math.isfinite(first) or first > 4 * even:
        problems.append(
            f"the first loss is {first:.3g}, an even guess has {even:.3g}: check the scale of inputs and last layer"
        )
    if right < 0.9 and not problems:
        problems.append(
            f"{_HEART_STEPS} steps on one batch of {len(few.x)} samples get only {right:.0%} of it right: "
            "check labels, and whether the network loses what tells the classes apart (AdamW at its default rate)"
        )
    return Preflight(first_loss=first, even_guess=even, by_heart=right, problems=tuple(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbe:
    """Sizes that were run, and the one to take."""

    sizes: tuple[int, ...]
    samples_per_second: tuple[float, ...]
    bytes_grown: tuple[int, ...]  # of this process, at its peak, since before the probe
    chosen: int
    why: str

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "sizes": list(self.sizes),
            "samples_per_second": list(self.samples_per_second),
            "bytes_grown": list(self.bytes_grown),
            "chosen": self.chosen,
            "why": self.why,
            "tier": "measured",
        }


def batch_probe(
    module: nn.Module,
    data: Split,
    settings: FitSettings,
    *,
    memory_bytes: int,
    largest: int = 4096,
    progress: Progress = silent,
) -> BatchProbe:
    """Double the batch until memory, samples or speed end it; what is returned has itself been run.

    Args:
        memory_bytes: how much this process may grow. The next size is tried only if twice the growth fits.
    """
    sizes: list[int] = []
    speeds: list[float] = []
    grown: list[int] = []
    start, size, why = _peak(), min(16, len(data.x)), f"the largest that is tried, {largest}"
    plain = {"schedule": ScheduleSettings(name="constant"), "max_steps": 3, "epochs": 3, "halvings": 0, "watch": False,
             "validation_share": 0.0, "early_stopping": None, "average": None}  # fmt: skip
    while size <= largest:
        if size > len(data.x):
            why = f"there are {len(data.x)} training samples"
            break
        trial = copy.deepcopy(module)
        few = Split(
            x=data.x[: 3 * size], y=data.y[: 3 * size], x_validation=data.x[:0], y_validation=data.y[:0]
        )
        optimizer = settings.optimizer.model_copy(update={"lr": None})
        given = settings.model_copy(
            update={**plain, "optimizer": optimizer, "batch_size": size, "accumulate": 1}
        )
        started = time.perf_counter()
        history = fit(trial, few, given, seed=0, progress=silent, label="batch probe")
        seconds = time.perf_counter() - started
        sizes.append(size)
        speeds.append(size * history.steps / seconds)
        grown.append(max(0, _peak() - start))
        progress(f"batch probe: {size} samples, {speeds[-1]:.0f} a second, {grown[-1] / 1e6:.0f} MB more")
        if 2 * grown[-1] > memory_bytes:
            why = f"the next size might take over {memory_bytes / 1e6:.0f} MB"
            break
        if len(speeds) > 2 and speeds[-1] < 1.05 * max(speeds[:-1]):
            why = "larger ones are no faster"
            break
        size *= 2
    best = max(speeds)
    fitting = [i for i in range(len(sizes)) if grown[i] <= memory_bytes] or [0]
    chosen = next(i for i in fitting if speeds[i] >= 0.9 * max(speeds[j] for j in fitting))
    return BatchProbe(
        sizes=tuple(sizes), samples_per_second=tuple(speeds), bytes_grown=tuple(grown), chosen=sizes[chosen],
        why=f"within a tenth of the fastest ({best:.0f} samples/s); the search ended because {why}",
    )  # fmt: skip


def _peak() -> int:
    """Greatest resident size of this process so far, bytes; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """How large a batch still brings progress, and not only speed."""

    samples: float  # the simple noise scale; NaN where the gradient is lost in noise
    text: str


def noise_scale(
    module: nn.Module, data: Split, *, small: int = 32, count: int = 32, seed: int = 0
) -> NoiseScale:
    """The simple gradient noise scale: trace of the gradient's covariance over its squared length.

    From ``count`` gradients of ``small`` samples and their mean. Dropout is off, and batch norm uses its
    running statistics, so that samples are independent.

    Reference:
        McCandlish et al., 2018 (an empirical model of large-batch training), equations 2.9 and A.2.
    """
    trial = copy.deepcopy(module).eval()
    order = torch.from_numpy(np.random.default_rng([seed, 5]).permutation(len(data.x)))
    parts = order[: small * count].split(small)
    parts = parts[:-1] if len(parts[-1]) < small else parts
    if len(parts) < 2:
        return NoiseScale(
            samples=math.nan, text=f"{len(data.x)} samples are too few for two batches of {small}"
        )
    mean: list[Tensor] = []
    squares = 0.0
    for part in parts:
        trial.zero_grad()
        functional.cross_entropy(trial(data.x[part]), data.y[part]).backward()
        gradients = [p.grad.double() for p in trial.parameters() if p.grad is not None]
        squares += sum(float(g.square().sum()) for g in gradients) / len(parts)
        mean = (
            [m + g / len(parts) for m, g in zip(mean, gradients, strict=True)]
            if mean
            else [g / len(parts) for g in gradients]
        )
    large = small * len(parts)
    length = sum(float(g.square().sum()) for g in mean)
    true_length = (large * length - small * squares) / (large - small)
    spread = (squares - length) / (1 / small - 1 / large)
    if true_length <= 0:
        return NoiseScale(
            samples=math.nan, text="the gradient is lost in its noise: any batch that fits is good"
        )
    scale = spread / true_length
    return NoiseScale(
        samples=scale, text=f"beyond about {scale:,.0f} samples a batch you buy speed, not progress"
    )
