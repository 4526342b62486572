"""Files that steps hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What a file is, which decides who may consume it."""

    CHECKPOINT = "checkpoint"  # float network: safetensors with its recipe in the header
    QUANTIZED_CHECKPOINT = "quantized_checkpoint"  # the same with fake quantizers; or ONNX with Q/DQ pairs
    ONNX = "onnx"  # as exported, or a float model of the user's with no torch source
    PREDICTIONS = "predictions"  # npz: logits and labels on the test split
    TABLE = "table"  # JSON: a stage's decisions, for people and for the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file known by its digest."""

    kind: Kind
    digest: str  # sha256:...
    bytes: int
    path: Path  # where it can be read now; not part of its identity
