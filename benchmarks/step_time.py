"""Time of a fake-quantized training step against the float step, interleaved in one process.

    python -m benchmarks.step_time

Batch 128 of 28x28 images, forward, backward and AdamW; the median of the ratios of neighbouring steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.config.hardware import shipped
from hwopt.core.choices import Choice
from hwopt.models.build import build_model
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import PtqSettings

SHAPE = (1, 28, 28)


def stepper(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    module.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    torch.manual_seed(0)
    x = torch.rand(128, *SHAPE).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (128,))
    for name, options in (("cnn", {"width": 32}), ("mobilenet_v2", {"width": 1.0})):
        module = build_model(Choice(name=name, factory=None, options=options), SHAPE, 10, None)
        twin = quantize_module(module, SHAPE, shipped("generic-cpu").quantization, x, PtqSettings(tune=False))
        sides = {"float": stepper(module, x, y), "fake-quantized": stepper(twin.graph, x, y)}
        ratios = []
        for index in range(25):
            times = {}
            for side in sorted(sides, reverse=bool(index % 2)):
                start = time.perf_counter()
                sides[side]()
                times[side] = time.perf_counter() - start
            if index >= 5:
                ratios.append(times["fake-quantized"] / times["float"])
        low, high = np.percentile(ratios, [25, 75])
        print(f"{name}: {np.median(ratios):.2f} (quartiles {low:.2f}, {high:.2f})")


if __name__ == "__main__":
    main()
