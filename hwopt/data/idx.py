"""MNIST and its kin: four IDX files, plain or gzip.

Format: http://yann.lecun.com/exdb/mnist (two zero bytes, type code, rank, big-endian sizes, data).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings
from hwopt.data.arrays import checked
from hwopt.errors import ConfigError

FILES: Final = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_UINT8: Final = 8
MAX_BYTES: Final = 4 << 30


class IdxOptions(Settings):
    """The folder that holds the four files."""

    root: str
    train_samples: Annotated[int, Field(ge=2)] | None = None  # the first so many, for experiments; None: all
    test_samples: Annotated[int, Field(ge=2)] | None = None
    enlarge: Annotated[int, Field(ge=1, le=16)] = 1  # every pixel becomes a square of so many


def files(options: IdxOptions) -> list[Path]:
    """The four files; ConfigError where one is missing."""
    root = Path(options.root)
    found: list[Path] = []
    for name in FILES.values():
        path = next((p for p in (root / f"{name}.gz", root / name) if p.is_file()), None)
        if path is None:
            raise ConfigError(
                f"{name}.gz is not in {root}",
                fix="point data.root to the folder with the four IDX files of MNIST",
            )
        found.append(path)
    return found


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """One IDX file of unsigned bytes; ConfigError for anything else."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as handle:
            head = handle.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or not 1 <= head[3] <= 4:
                raise ConfigError("not an IDX file of unsigned bytes", where=str(path))
            shape = struct.unpack(f">{head[3]}I", handle.read(4 * head[3]))
            size = prod(shape)
            if size > MAX_BYTES:
                raise ConfigError(f"the file declares {size:,} bytes", where=str(path))
            body = handle.read(size)
            if handle.read(1):  # reading past the data also makes gzip check its sum
                raise ConfigError(
                    f"the file holds more than the {size:,} bytes it declares",
                    where=str(path),
                    fix="fetch the file anew",
                )
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), fix="fetch the file anew") from None
    if len(body) != size:
        raise ConfigError(
            f"the file ends after {len(body):,} of {size:,} bytes", where=str(path), fix="fetch the file anew"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def load(options: IdxOptions) -> Dataset:
    """Images N×1×28×28 in 0…1."""
    arrays = {key: read_idx(path) for key, path in zip(FILES, files(options), strict=True)}
    for split, count in (("train", options.train_samples), ("test", options.test_samples)):
        for axis in "xy":
            arrays[f"{axis}_{split}"] = arrays[f"{axis}_{split}"][:count]
        if options.enlarge > 1:
            larger = arrays[f"x_{split}"].repeat(options.enlarge, 1).repeat(options.enlarge, 2)
            arrays[f"x_{split}"] = larger
    return checked("mnist", arrays)


SOURCE: Final = DataSource(settings=IdxOptions, load="hwopt.data.idx:load", files=files, paths=("root",))
