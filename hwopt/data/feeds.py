"""Arrays by input name, cut into the calls that a model is run with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hwopt.data.npz import read_arrays
from hwopt.errors import ConfigError

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]
_BATCH: Final = 16


def read_feeds(path: Path, shapes: Mapping[str, Shape], dtypes: Mapping[str, Any]) -> list[dict[str, Array]]:
    """The calls that an npz archive holds; see ``feeds``."""
    return feeds(read_arrays(path), shapes, dtypes, where=str(path))


def feeds(
    arrays: Mapping[str, Array], shapes: Mapping[str, Shape], dtypes: Mapping[str, Any], *, where: str | None
) -> list[dict[str, Array]]:
    """One mapping a call.

    Arrays with one axis more than the input hold one call an entry. Otherwise the first axis is the batch: it
    is cut to the model's own size, or to 16 where that is free; an unfilled last call is left out.

    Args:
        shapes: of the model's inputs; None is a free axis.
        dtypes: of the model's inputs; floats are converted, anything else must fit.
    Raises:
        ConfigError: an input is missing, or an array does not fit.
    """
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise ConfigError(
            f"there is no array for the input {missing[0]!r}",
            where=where,
            fix=f"the model's inputs are {', '.join(shapes)}; the arrays are {', '.join(arrays) or 'none'}",
        )
    given = {name: _typed(name, arrays[name], dtypes[name], where) for name in shapes}
    a_call_an_entry = all(given[name].ndim == len(shape) + 1 for name, shape in shapes.items())
    lengths = {name: len(array) for name, array in given.items() if array.ndim}
    if len(lengths) < len(given):
        scalars = ", ".join(sorted(set(given) - set(lengths)))
        raise ConfigError(
            f"{scalars}: a single number",
            where=where,
            fix="give one entry a call, or fix the input with --fix",
        )
    if len(set(lengths.values())) != 1:
        raise ConfigError(
            "the arrays differ in length: " + ", ".join(f"{k} has {v}" for k, v in lengths.items()),
            where=where,
        )
    count = next(iter(lengths.values()))
    if a_call_an_entry:
        calls = [{name: array[i] for name, array in given.items()} for i in range(count)]
    else:
        fixed = {shape[0] for shape in shapes.values() if shape and shape[0] is not None}
        size = min(fixed) if fixed else _BATCH
        last = count - size + 1 if fixed else count
        calls = [{n: a[i : i + size] for n, a in given.items()} for i in range(0, last, size)]
    if not calls:
        raise ConfigError("the set of samples is empty", where=where, fix="give at least one sample")
    for name, shape in shapes.items():
        _fits(name, calls[0][name], shape, where)
        if given[name].dtype.kind == "f" and not np.isfinite(given[name]).all():
            raise ConfigError(f"{name} holds NaN or infinity", where=where, fix="remove those samples")
    return calls


def _typed(name: str, array: Array, dtype: Any, where: str | None) -> Array:
    wanted = np.dtype(dtype)
    if array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{name} holds {array.dtype}, and the model takes {wanted}",
            where=where,
            fix="store plain numbers",
        )
    if array.dtype == wanted:
        return array
    if wanted.kind != "f" and array.dtype.kind == "f":
        raise ConfigError(f"{name} holds {array.dtype}, and the model takes {wanted}", where=where)
    with np.errstate(over="ignore"):  # what overflows is infinite from then on, and is refused below
        return array.astype(wanted)


def _fits(name: str, array: Array, shape: Shape, where: str | None) -> None:
    legal = array.ndim == len(shape) and all(
        size is None or size == given for size, given in zip(shape, array.shape, strict=True)
    )
    if not legal:
        wanted = [size if size is not None else "any" for size in shape]
        raise ConfigError(
            f"{name} has the shape {list(array.shape)} in a call, and the model takes {wanted}", where=where
        )
