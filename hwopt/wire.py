"""Walk an ONNX file's bytes before any library parses them.

Protocol Buffers without a schema compiler: a field is a key (number and wire type) and a value (the encoding page of
protobuf.dev). The walk visits only the messages that ``onnx.proto`` names, counts them, and never copies a tensor, so a
hostile file costs neither memory nor time: its size, depth and number of parts are known before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_DEPTH: Final = 90  # nested messages; the parser ends at 100
MAX_FIELDS: Final = 3_000_000

# Message -> field number -> message of that field. From onnx.proto (IR version 13); what is not listed is a leaf.
_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 8: "OperatorSet", 14: "Pair", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph", 3: "Pair", 4: "Pair"},
    "Function": {7: "Node", 9: "OperatorSet", 11: "Attribute", 12: "Value", 14: "Pair"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 15: "Sparse", 16: "Pair"},
    "Node": {5: "Attribute", 9: "Pair"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        14: "Type",
        15: "Type",
        22: "Sparse",
        23: "Sparse",
    },
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Pair", 16: "Pair"},
    "Value": {2: "Type", 4: "Pair"},
    "Type": {1: "TypeTensor", 4: "Sequence", 5: "Map", 8: "TypeTensor", 9: "Optional"},
    "TypeTensor": {2: "Shape"},
    "Sequence": {1: "Type"},
    "Optional": {1: "Type"},
    "Map": {2: "Type"},
    "Shape": {1: "Dimension"},
}
_PARTS: Final = {"Node", "Tensor", "Graph", "Function"}


class WireError(ValueError):
    """The bytes are no ONNX model; the text says why and where."""


@dataclass(slots=True)
class Census:
    """What a file consists of."""

    fields: int = 0
    depth: int = 0
    parts: dict[str, int] = field(default_factory=dict)


def census(data: memoryview) -> Census:
    """Count the messages of a model.

    Raises:
        WireError: truncated, nested too deeply, too many parts, or not this format.
    """
    found = Census()
    _walk(data, 0, len(data), "Model", 1, found)
    return found


def _walk(data: memoryview, start: int, end: int, message: str, depth: int, found: Census) -> None:
    if depth > MAX_DEPTH:
        raise WireError(f"messages are nested more than {MAX_DEPTH} deep")
    found.depth = max(found.depth, depth)
    inner = _MESSAGES.get(message, {})
    for number, low, high in _fields(data, start, end, found):
        name = inner.get(number)
        if name is not None and high >= 0:
            if name in _PARTS:
                found.parts[name] = found.parts.get(name, 0) + 1
            _walk(data, low, high, name, depth + 1, found)


def _fields(data: memoryview, start: int, end: int, found: Census) -> Iterator[tuple[int, int, int]]:
    """Field number with the bounds of its bytes; the upper one is -1 for numbers."""
    at = start
    while at < end:
        found.fields += 1
        if found.fields > MAX_FIELDS:
            raise WireError(f"more than {MAX_FIELDS:,} fields")
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(f"a field without a number at byte {at:,}")
        if kind == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise WireError(f"a field of {length:,} bytes at byte {at:,} goes beyond its end")
            yield number, at, at + length
            at += length
            continue
        if kind == 0:
            _, at = _varint(data, at, end)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        else:
            raise WireError(f"the wire type {kind} at byte {at:,}, which ONNX does not use")
        if at > end:
            raise WireError("the file ends in the middle of a number")
        yield number, at, -1


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError(f"a number without an end at byte {at:,}")
