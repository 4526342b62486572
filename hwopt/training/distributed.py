"""Several processes under torchrun: each takes its share of every batch, gradients are averaged.

Without torchrun every function here is the plain thing for one process. CPUs talk by gloo, GPUs by NCCL
(untested: no machine with several GPUs was at hand).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or ("RANK" in os.environ and "WORLD_SIZE" in os.environ)


def start() -> None:
    """Join the others; once a process, before the first training."""
    if launched() and not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(minutes=30))


def stop() -> None:
    """Leave the others."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def active() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if active() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if active() else 0


def device() -> torch.device:
    """Where to train: the GPU of this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def wrapped(module: nn.Module, where: torch.device) -> Any:
    """What to call in place of ``module`` so that gradients are averaged."""
    if not active():
        return module
    return DistributedDataParallel(module, device_ids=[where.index] if where.type == "cuda" else None)


def no_sync(module: Any) -> AbstractContextManager[None]:
    """Keep gradients to oneself: more parts of the batch follow."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def least() -> int:
    """Samples that a batch must have, so that each process gets two."""
    return 2 * world()


def mine(index: Tensor) -> Tensor:
    """This process' share of a batch of at least ``least()`` samples."""
    return index[rank() :: world()]


def mean(value: float, n: int, whole: int) -> float:
    """Mean over all processes of a mean over ``n`` of ``whole`` samples."""
    return total(value * n / whole) if active() else value


def total(value: float) -> float:
    """Sum over all processes."""
    if not active():
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device())
    distributed.all_reduce(found)
    return float(found)


def agreed(value: float) -> float:
    """What the first process says: all must decide alike."""
    if not active():
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device())
    distributed.broadcast(found, 0)
    return float(found)


def share_buffers(module: nn.Module) -> None:
    """Batch-norm statistics of the first process for all; weights are equal anyway."""
    if active():
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
