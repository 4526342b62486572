"""The state of a training in one file: safetensors with the structure as JSON in its header; never pickle."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class _Keep:
    """Stands for a value that a file cannot hold, such as a function."""


KEEP: Final = _Keep()


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of nested dictionaries, lists, tuples, numbers and text; tensors go to ``tensors``."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return {"last" if last and not value.is_contiguous() else "tensor": name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, dict):
        return {"dict": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list):
        return [pack(v, tensors) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [pack(v, tensors) for v in value]}
    return {"keep": True}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``pack``."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "last":
            return tensors[inner].contiguous(memory_format=torch.channels_last)
        case "float":
            return float(inner)
        case "dict":
            return {unpack(k, tensors): unpack(v, tensors) for k, v in inner}
        case "tuple":
            return tuple(unpack(v, tensors) for v in inner)
        case "keep":
            return KEEP
    raise ValueError(f"{kind!r} is no part of a snapshot")


def save(path: Path, state: dict[str, Any], fingerprint: str) -> None:
    """Write, so that a kill at any moment leaves the old file or the new one."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(pack(state, tensors))
    tensors = tensors or {"none": torch.zeros(1)}
    temporary = path.with_suffix(".writing")
    save_file(tensors, temporary, metadata={"state": structure, "fingerprint": fingerprint})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state, where there is one that was made under the same conditions; else None."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("fingerprint") != fingerprint:
                return None
            # Copies lie as torch lays them: sums over memory of another alignment round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = unpack(json.loads(header["state"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return state
