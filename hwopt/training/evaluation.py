"""What a network says, and statistics of its norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.models.sample import trimmed

_BATCH = 512


def logits_of(
    module: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Outputs over many samples, in evaluation mode, batch by batch; on the CPU."""
    was_training = module.training
    module.train(False)
    parts: list[Tensor] = []
    with torch.no_grad():
        for chunk in torch.split(x, _BATCH):
            given = chunk.to(dtype) if chunk.is_floating_point() else trimmed(chunk)
            parts.append(module(given if device is None else given.to(device)).cpu())
    module.train(was_training)
    return torch.cat(parts)


def evaluate(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits = logits_of(module, x, dtype, device)
    loss = float(functional.cross_entropy(logits, y))
    return loss, float((logits.argmax(1) == y).float().mean())


def refresh_batch_norm(
    module: nn.Module, x: Tensor, *, limit: int = 2048, but: Sequence[nn.Module] = ()
) -> None:
    """Estimate batch-norm statistics anew from ``limit`` random samples, as a plain average.

    Needed after every change of structure: the old statistics belong to channels in other company. Those in ``but``
    keep theirs.
    """
    kept = set(but)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m not in kept]
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
