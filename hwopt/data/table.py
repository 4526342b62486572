"""Tables from CSV: numbers and categories to features, one column to the class."""

from __future__ import annotations

import csv
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

_MOST_CATEGORIES: Final = 100
_GREATEST: Final = 1e30  # of a number: beyond it, float32 has no squares


class CsvOptions(Settings):
    """Where the table is; the first line names the columns."""

    path: str
    label: str  # the column with the class
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    standardize: bool = True  # numbers to mean 0 and deviation 1, as the training split has them


def load(options: CsvOptions) -> Dataset:
    """Features N×F: numbers as they are or standardized, other columns one-hot; classes sorted by name."""
    path = Path(options.path)
    header, rows, lines = _read(path)
    if options.label not in header:
        raise ConfigError(
            f"there is no column {options.label!r}",
            where=f"{path}:1",
            fix=f"the columns are {', '.join(header)}",
        )
    at = header.index(options.label)
    names = sorted({row[at] for row in rows})
    y = np.array([names.index(row[at]) for row in rows], np.int64)
    test = np.random.default_rng(1).random(len(rows)) < options.test_share
    parts = [
        _column(name, [row[i] for row in rows], ~test, options, [f"{path}:{line}" for line in lines])
        for i, name in enumerate(header)
        if i != at
    ]
    if not parts:
        raise ConfigError("the table has no column besides the label", where=f"{path}:1", fix="add features")
    x = np.concatenate(parts, 1).astype(np.float32)
    arrays: dict[str, npt.NDArray[Any]] = {
        "x_train": x[~test],
        "y_train": y[~test],
        "x_test": x[test],
        "y_test": y[test],
    }
    return checked(path.stem, arrays, len(names))


def _read(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Columns, rows, and the line at which each row ends."""
    lines: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ConfigError(
                        f"{len(row)} fields, and the first line has {len(header)}",
                        where=f"{path}:{reader.line_num}",
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=str(path), fix="give a CSV file in UTF-8"
        ) from None
    if len(rows) < 2:
        raise ConfigError("the table has fewer than two rows", where=str(path), fix="give more rows")
    return header, rows, lines


def _column(
    name: str, values: list[str], train: npt.NDArray[np.bool_], options: CsvOptions, places: list[str]
) -> npt.NDArray[np.float64]:
    empty = next((i for i, v in enumerate(values) if not v.strip()), None)
    if empty is not None:
        raise ConfigError(f"{name} is empty", where=places[empty], fix="fill it in, or leave the row out")
    try:
        numbers = np.array(values, np.float64)[:, None]
    except ValueError:
        categories = sorted(set(values))
        if len(categories) > _MOST_CATEGORIES:
            raise ConfigError(
                f"{name} has {len(categories)} different texts: it is neither a number nor a category",
                where=places[0],
                fix="leave the column out",
            ) from None
        return np.array([[v == c for c in categories] for v in values], np.float64)
    bad = np.flatnonzero(~(np.abs(numbers[:, 0]) < _GREATEST))
    if len(bad):
        raise ConfigError(
            f"{name} is {values[bad[0]]}, which is no usable number",
            where=places[bad[0]],
            fix="repair or remove the row",
        )
    if options.standardize:
        known = numbers[train]
        deviation = known.std()
        return np.asarray((numbers - known.mean()) / (deviation if deviation > 0 else 1.0))
    return numbers


SOURCE: Final = DataSource(
    settings=CsvOptions, load="hwopt.data.table:load", files=lambda o: [Path(o.path)], paths=("path",)
)
