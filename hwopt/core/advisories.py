"""Published weaknesses of libraries that read models or data, with the version that mends each.

Not complete, and not a scanner: what could be confirmed in the record that each line names, looked up in November 2026.
Nothing found for a library means that nothing is listed here, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Advisory:
    """One weakness."""

    library: str
    fixed: str  # the first version without it; of each branch, where several were mended
    name: str
    what: str
    source: str


ADVISORIES: Final = (
    Advisory("onnx", "1.16.0", "CVE-2024-27318", "external data outside the folder", "GHSA-whh8-fjgc-qp73"),
    Advisory("onnx", "1.21.0", "CVE-2026-27489", "symbolic links of external data", "PYSEC-2026-2239"),
    Advisory("onnx", "1.21.0", "CVE-2026-34446", "hard links of external data", "PYSEC-2026-2241"),
    Advisory("onnx", "1.21.0", "CVE-2026-34445", "attributes set from model metadata", "PYSEC-2026-2240"),
    Advisory(
        "torch", "2.6.0", "CVE-2025-32434", "code run by torch.load with weights_only", "GHSA-53q9-r3pm-6pq6"
    ),
    Advisory(
        "torch",
        "2.10.0",
        "CVE-2026-24747",
        "memory corruption in the weights_only reader",
        "GHSA-63cw-57p8-fm3p",
    ),
    Advisory("tensorrt", "10.16.1", "CVE-2026-24188", "write out of bounds", "NVIDIA product security 5836"),
    Advisory(
        "tensorrt",
        "11.0",
        "CVE-2026-24268",
        "heap overflow when an engine is read",
        "NVIDIA product security 5855",
    ),
    Advisory("pyyaml", "5.4", "CVE-2020-14343", "code run by the full loader", "PYSEC-2021-142"),
    Advisory(
        "protobuf",
        "4.25.8, 5.29.5, 6.31.1",
        "CVE-2025-4565",
        "endless recursion in pure Python",
        "GHSA-8qvm-5x2c-j2w7",
    ),
    Advisory("pillow", "12.1.1", "CVE-2026-25990", "write out of bounds in PSD files", "CVE record"),
    Advisory("pillow", "12.2.0", "CVE-2026-40192", "FITS files that unpack without end", "PYSEC-2026-2250"),
    Advisory(
        "pillow", "12.3.0", "CVE-2026-59199", "write out of bounds when pasting", "OSV BIT-pillow-2026-59199"
    ),
    Advisory(
        "jinja2", "3.1.6", "CVE-2025-27516", "escape from the sandbox by a filter", "GHSA-cpwx-vrp4-4pq7"
    ),
)


def open_in(libraries: Mapping[str, str | None]) -> list[Advisory]:
    """The listed weaknesses of installed versions."""
    return [
        a
        for a in ADVISORIES
        if (v := libraries.get(a.library)) and not _mended(_parts(v), a.fixed.split(", "))
    ]


def _mended(version: tuple[int, ...], fixed: Sequence[str]) -> bool:
    branches = [_parts(one) for one in fixed]
    own = [branch for branch in branches if len(branches) > 1 and branch[0] == version[0]]
    return version >= (own[0] if own else branches[-1])


def _parts(version: str) -> tuple[int, ...]:
    """Numbers of a version, and -1 behind those of one before its release: ``2.13.0+cpu``, ``2.10.0rc1``."""
    numbers, rest = re.fullmatch(r"([\d.]*)(.*)", version.partition("+")[0]).groups()  # type: ignore[union-attr]
    found = [int(n) for n in numbers.split(".") if n][:4]
    found += [0] * (4 - len(found))
    return (*found, -1 if re.match(r"[._-]?(a|b|c|rc|dev|alpha|beta|pre)", rest) else 0)
