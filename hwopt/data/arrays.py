"""Arrays of any usual layout to a checked ``Dataset``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hwopt.core.dataset import Dataset
from hwopt.errors import ConfigError

KEYS = ("x_train", "y_train", "x_test", "y_test")


def samples(x: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """Samples as float32, channels first.

    uint8 images N×H×W or N×H×W×C are scaled to 0…1; float arrays keep their values: N×F tables, N×H×W
    images, N×C×H×W images where the second axis is the shortest, else N×H×W×C.
    """
    if x.dtype == object or x.dtype.kind not in "uif":
        raise ConfigError(f"{name} holds {x.dtype}, not numbers", fix="store uint8 or float32 arrays")
    if x.ndim >= 3 and x.dtype.kind in "ui" and x.dtype != np.uint8:
        raise ConfigError(
            f"{name} holds images of {x.dtype}, whose scale is not known",
            fix="store uint8 images (scaled to 0…1 here), or floats",
        )
    if x.size == 0:
        raise ConfigError(f"{name} has shape {list(x.shape)}: samples without a value")
    if x.ndim not in {2, 3, 4}:
        raise ConfigError(
            f"{name} has shape {list(x.shape)}", fix="give N×F tables, or images N×H×W or N×H×W×C"
        )
    if x.ndim == 4 and (x.dtype == np.uint8 or x.shape[3] < x.shape[1]):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim == 3:
        x = x[:, None]
    result = x.astype(np.float32)
    return np.ascontiguousarray(result / np.float32(255) if x.dtype == np.uint8 else result)


def labels(y: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    """Class indices as int64."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    whole = y.dtype.kind in "ui" or (y.dtype.kind == "f" and bool(np.all(y == np.rint(y))))
    if y.ndim != 1 or not whole:
        raise ConfigError(
            f"{name} has shape {list(y.shape)} and type {y.dtype}",
            fix="give one whole number a sample: the index of its class",
        )
    return y.astype(np.int64)


def checked(name: str, arrays: dict[str, npt.NDArray[Any]], classes: int | None = None) -> Dataset:
    """A data set that training and evaluation can trust; ConfigError says what is wrong and where."""
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ConfigError(
            f"the data set lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}",
            fix=f"give the arrays {', '.join(KEYS)}",
        )
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim == 0 or y.ndim == 0:
            raise ConfigError(f"x_{split} or y_{split} is a single number", fix="give one entry a sample")
        if len(x) == 0:
            raise ConfigError(f"x_{split} is empty", fix="give at least one sample")
        if len(x) != len(y):
            raise ConfigError(f"x_{split} has {len(x)} samples and y_{split} {len(y)} labels")
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        raise ConfigError(
            f"x_train holds {arrays['x_train'].dtype} and x_test {arrays['x_test'].dtype}, so they would be "
            "scaled differently",
            fix="store both as uint8 images, or both as floats",
        )
    x_train, x_test = samples(arrays["x_train"], "x_train"), samples(arrays["x_test"], "x_test")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ConfigError(
            f"samples have shape {list(x_train.shape[1:])} in x_train and {list(x_test.shape[1:])} in x_test"
        )
    for key, x in (("x_train", x_train), ("x_test", x_test)):
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if bad.any():
            raise ConfigError(
                f"{int(bad.sum())} of {len(x)} samples of {key} hold NaN or infinity, "
                f"the first is sample {int(np.argmax(bad))}",
                fix="remove or repair them before training",
            )
    y_train, y_test = labels(arrays["y_train"], "y_train"), labels(arrays["y_test"], "y_test")
    count = _classes(y_train, classes)
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        outside = (y < 0) | (y >= count)
        if outside.any():
            index = int(np.argmax(outside))
            raise ConfigError(
                f"the label {int(y[index])} of sample {index} in {key} is out of range 0 … {count - 1}",
                fix="number the classes from 0, every class present in y_train; or set `classes` under data",
            )
    return Dataset(name=name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=count)


def _classes(y_train: npt.NDArray[np.int64], classes: int | None) -> int:
    """The stated number, else that of the distinct training labels, which must then be 0 … n-1."""
    distinct = len(np.unique(y_train))
    count = classes if classes is not None else distinct
    if count < 2:
        raise ConfigError(
            f"y_train holds {count} class: there is nothing to tell apart", fix="give at least two classes"
        )
    return count
