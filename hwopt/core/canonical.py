"""Canonical JSON and the digests that are built on it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_CHUNK_BYTES = 1 << 20


def canonical_json(value: JSON) -> str:
    """One text per value: sorted keys, no blanks, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pretty_json(value: JSON) -> str:
    """The same value for people: sorted keys, two blanks, finite numbers only."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def digest_of(value: JSON) -> str:
    """``sha256:...`` of the canonical JSON of ``value``."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """``sha256:...`` of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def finite_or_none(value: float | None) -> float | None:
    """``value`` if JSON can hold it, else None: records never carry NaN or infinity."""
    return None if value is None or not math.isfinite(value) else float(value)
