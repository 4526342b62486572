"""A NumPy archive with ``x_train, y_train, x_test, y_test``; pickles inside it are refused."""

from __future__ import annotations

import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hwopt.archives import UNREADABLE, check_zip
from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings
from hwopt.data.arrays import KEYS, checked
from hwopt.errors import ConfigError, UnsafeInputError

MAX_BYTES: Final = 16 << 30  # of all arrays, unpacked


class NpzOptions(Settings):
    """Where the archive is."""

    path: str
    classes: Annotated[int, Field(ge=2, le=100_000)] | None = None


def load(options: NpzOptions) -> Dataset:
    """Read and check the archive."""
    path = Path(options.path)
    return checked(path.stem, read_arrays(path, KEYS), options.classes)


def read_arrays(path: Path, keys: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an untrusted archive by name; with ``keys``, only those.

    Raises:
        ConfigError: no readable archive.
        UnsafeInputError: too large once unpacked, or it holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path, MAX_BYTES)
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files if keys is None or key in keys}
    except ValueError as error:
        if "pickle" in str(error):
            raise UnsafeInputError(
                "the archive holds pickled objects, which can run code",
                where=str(path),
                fix="store plain numeric arrays: np.savez(path, x_train=…, …)",
            ) from None
        raise ConfigError(f"not a readable npz archive: {error}", where=str(path)) from None
    except (*UNREADABLE, OSError, SyntaxError, tokenize.TokenError) as error:
        raise ConfigError(f"not a readable npz archive: {error}", where=str(path)) from None
    other = [key for key, value in found.items() if not isinstance(value, np.ndarray)]
    if other:
        raise ConfigError(
            f"{other[0]!r} in the archive is no array", where=str(path), fix="store arrays: np.savez"
        )
    return found


SOURCE: Final = DataSource(
    settings=NpzOptions, load="hwopt.data.npz:load", files=lambda o: [Path(o.path)], paths=("path",)
)
