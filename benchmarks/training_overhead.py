"""What the loop and its watching cost, against a bare torch loop: interleaved blocks in one process.

python benchmarks/training_overhead.py [cnn|mlp]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hwopt.core.progress import silent
from hwopt.models import cnn, mlp
from hwopt.models.zoo import CnnOptions, MlpOptions
from hwopt.numerics.intervals import median_interval
from hwopt.training.batches import Split
from hwopt.training.choices import OptimizerSettings
from hwopt.training.loop import Training
from hwopt.training.settings import FitSettings

STEPS, BLOCK, BATCH = 1200, 20, 128


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return mlp.build((1, 28, 28), 10, MlpOptions(hidden=(512, 256)))
    return cnn.build((1, 28, 28), 10, CnnOptions(width=16))


def bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
    """What a careful user writes: the same arithmetic, clipping and schedule, and the loss as a number."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    done = 0
    while True:
        order = torch.randperm(len(x))
        for index in order.split(BATCH):
            batch = x[index].contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(batch), y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            loss.item()
            done += 1
            yield done


def ours(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, watch: bool):
    data = Split(x=x, y=y, x_validation=x[:0], y_validation=y[:0])
    settings = FitSettings(
        epochs=1000, max_steps=STEPS + 1, batch_size=BATCH, validation_share=0.0, watch=watch,
        optimizer=OptimizerSettings(lr=1e-3),
    )  # fmt: skip
    return Training(model, data, settings, seed=0, progress=silent, label="t").steps()


def main() -> None:
    torch.set_num_threads(1)
    kind = sys.argv[1] if len(sys.argv) > 1 else "cnn"
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH * 100, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (len(x),), generator=generator)
    sides = {
        "bare": bare(network(kind), x, y),
        "loop": ours(network(kind), x, y, watch=False),
        "watched": ours(network(kind), x, y, watch=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    rng = np.random.default_rng(0)
    for block in range(STEPS // BLOCK):
        for name in rng.permutation(list(sides)):
            started = time.process_time()
            for _ in range(BLOCK):
                next(sides[name])
            if block >= 3:
                times[name].append((time.process_time() - started) / BLOCK)
    print(
        f"{kind}: {1e3 * np.median(times['bare']):.2f} ms of CPU time a bare step, batch {BATCH}, one thread"
    )
    for name, base in (("loop", "bare"), ("watched", "loop"), ("watched", "bare")):
        ratios = np.array(times[name]) / np.array(times[base])
        middle, low, high = median_interval(ratios, 0.95)
        print(
            f"{name} over {base}: {middle:.3f} [{low:.3f}, {high:.3f}], {len(ratios)} pairs of {BLOCK} steps (measured)"
        )


if __name__ == "__main__":
    main()
