"""What must hold before a training starts, and what makes two trainings the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwopt.core.canonical import digest_of
from hwopt.errors import ConfigError
from hwopt.training import distributed
from hwopt.training.batches import Split
from hwopt.training.settings import FitSettings


def check(module: nn.Module, data: Split, settings: FitSettings, size: int, label: str) -> None:
    """Refuse what cannot work with this network and these samples.

    Raises:
        ConfigError: with the layer and the knob.
    """
    norms = [
        n or "the network"
        for n, m in module.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    part = size // settings.accumulate // distributed.world()
    if norms and part < 2 and len(data.x) > 1:
        raise ConfigError(
            f"{label}: batches of {part} sample and batch norm in {norms[0]}, whose statistics are the batch's",
            fix="raise batch_size or lower accumulate, or use layer norm",
        )
    if len(data.x) < distributed.least():
        raise ConfigError(
            f"{label}: {len(data.x)} samples for {distributed.world()} processes", fix="use fewer"
        )
    if settings.augment is not None and data.x.dim() != 4:
        raise ConfigError(
            f"{label}: augment changes images, and the samples have shape {list(data.x.shape[1:])}",
            fix="remove augment",
        )
    if settings.mixup and not data.x.is_floating_point():
        raise ConfigError(f"{label}: mixup mixes numbers, and the samples are tokens", fix="remove mixup")
    if settings.optimizer.spec.create_graph and distributed.world() > 1:
        raise ConfigError(
            f"{label}: {settings.optimizer.name} does not train in several processes", fix="use one"
        )
    for name, value in module.named_parameters():
        if not torch.isfinite(value).all():
            raise ConfigError(
                f"{label}: the weights of {name} hold NaN or infinity", fix="load other weights"
            )


def digest(tensors: Sequence[Tensor]) -> str:
    """Of the shapes and of at most a million evenly spread values of each tensor."""
    found = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().flatten()
        few = flat[:: max(1, len(flat) // 1_000_000)].contiguous()
        found.update(f"{tensor.shape}{tensor.dtype}".encode() + few.numpy().tobytes())
    return found.hexdigest()


def fingerprint(module: nn.Module, data: Split, settings: FitSettings, seed: int, label: str) -> str:
    """Equal where a snapshot may be taken up: settings, network, first weights, samples, library, threads."""
    return digest_of(
        {
            "settings": settings.to_json(),
            "seed": seed,
            "label": label,
            "network": hashlib.sha256(str(module).encode()).hexdigest(),
            "weights": digest(list(module.state_dict().values())),
            "samples": digest([data.x, data.y, data.x_validation, data.y_validation]),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "ranks": distributed.world(),
        }
    )
