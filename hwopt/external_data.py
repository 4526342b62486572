"""Weights of an ONNX model that lie in files beside it: where they may be, and that they are there."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from onnx import TensorProto

from hwopt.errors import UnsafeInputError

_FIX: Final = "save it as one file: onnx.save(onnx.load(path), new_path)"
_KEYS: Final = {"location", "offset", "length", "checksum", "basepath"}


def location_of(tensor: TensorProto) -> bool:
    """Whether a tensor's bytes are elsewhere."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def check_external(
    tensor: TensorProto, expected: int, folder: Path, taken: dict[Path, list[tuple[int, int, str]]]
) -> None:
    """Refuse bytes outside the model's folder, links, and ranges that are not there or that overlap.

    Args:
        expected: bytes that type and shape of the tensor ask for.
        taken: ranges of earlier tensors by file; this one's is added.
    """
    name = repr(tensor.name[:60])
    said = {entry.key: entry.value for entry in tensor.external_data}
    if len(said) != len(tensor.external_data) or not said.keys() <= _KEYS:
        raise UnsafeInputError(f"the tensor {name} says where its bytes are in words that ONNX does not know")
    path = _inside(said.get("location", ""), folder, name)
    offset, size = _number(said, "offset", name), path.stat().st_size
    length = _number(said, "length", name) if "length" in said else size - offset
    if length != expected and not ("length" not in said and length >= expected):
        raise UnsafeInputError(
            f"the tensor {name} declares {expected:,} bytes, and {length:,} in {path.name}"
        )
    if offset + expected > size:
        raise UnsafeInputError(
            f"the tensor {name} reaches to byte {offset + expected:,} of {path.name}, which has {size:,}"
        )
    taken.setdefault(path, []).append((offset, offset + expected, name))


def _inside(location: str, folder: Path, name: str) -> Path:
    odd = "\0" in location or "\\" in location or not PurePosixPath(location).parts
    if odd or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise UnsafeInputError(f"the tensor {name} lies at {location!r}, which is no relative path", fix=_FIX)
    parts = PurePosixPath(location).parts
    if ".." in parts:
        raise UnsafeInputError(
            f"the tensor {name} lies at {location!r}, outside the model's folder", fix=_FIX
        )
    path = folder
    for part in parts:
        path = path / part
        try:
            found = path.lstat()
        except (OSError, ValueError):
            raise UnsafeInputError(
                f"the tensor {name} lies in {location!r}, which is not there",
                fix="put the file beside the model",
            ) from None
        if stat.S_ISLNK(found.st_mode):
            raise UnsafeInputError(f"the tensor {name} lies behind the link {part!r}", fix=_FIX)
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeInputError(f"the tensor {name} lies in {location!r}, which is no file", fix=_FIX)
    if found.st_nlink != 1:
        raise UnsafeInputError(
            f"the tensor {name} lies in {location!r}, which is also another file (a hard link)",
            fix="copy the file, so that it has one name",
        )
    return path


def _number(said: dict[str, str], key: str, name: str) -> int:
    text = said.get(key, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnsafeInputError(f"the tensor {name} has the {key} {text[:30]!r}, which is no size")
    return int(text)


def no_overlaps(taken: Mapping[Path, list[tuple[int, int, str]]]) -> None:
    """Refuse ranges of a file that share bytes and are not the same range."""
    for ranges in taken.values():
        distinct = sorted({(low, high): name for low, high, name in ranges if low < high}.items())
        for ((_, high), one), ((low, _), other) in pairwise(distinct):
            if low < high:
                raise UnsafeInputError(f"the tensors {one} and {other} share bytes in a file")
