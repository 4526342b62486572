"""Data sets by the names of Hugging Face and torchvision; naming one is what allows a download."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field

from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings
from hwopt.data.arrays import checked
from hwopt.data.text import encode, vocabulary
from hwopt.errors import ConfigError, EngineMissingError


class HuggingFaceOptions(Settings):
    """A data set of the hub, or a local folder or script-free file type with ``files``."""

    dataset: str  # for example "mnist", or a format such as "json" with ``files``
    config: str | None = None
    files: dict[str, str] | None = None  # split to local file, for the formats json, csv, parquet
    input: str  # column
    label: str = "label"
    train: str = "train"
    test: str = "test"
    words: Annotated[int, Field(ge=10, le=1_000_000)] = 8000  # where the input is text
    length: Annotated[int, Field(ge=1, le=100_000)] = 256


def load_huggingface(options: HuggingFaceOptions) -> Dataset:
    """Images, tables or texts, by the type of the input column."""
    try:
        library: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise EngineMissingError(
            "the library datasets is not installed", fix="pip install 'hwopt[huggingface]'"
        ) from error
    try:
        found = library.load_dataset(options.dataset, options.config, data_files=options.files)
        parts = {name: found[part] for name, part in (("train", options.train), ("test", options.test))}
        columns = {name: (part[options.input], part[options.label]) for name, part in parts.items()}
    except (OSError, ValueError, KeyError, ConnectionError, library.exceptions.DatasetsError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{options.dataset} cannot be loaded: {text}",
            fix="check its name, splits and columns, and the network",
        ) from error
    names = sorted({str(v) for _, labels in columns.values() for v in labels})
    arrays: dict[str, Any] = {}
    texts = {name: list(given) for name, (given, _) in columns.items()}
    known: tuple[str, ...] = ()
    if texts["train"] and isinstance(texts["train"][0], str):
        known = vocabulary(texts["train"], options.words)
    for name, (_, labels) in columns.items():
        given = texts[name]
        arrays[f"y_{name}"] = np.array([names.index(str(v)) for v in labels], np.int64)
        arrays[f"x_{name}"] = (
            encode(given, known, options.length)[0] if known else np.stack([np.asarray(v) for v in given])
        )
    if known:
        return Dataset(name=options.dataset, classes=len(names), vocabulary=known, **arrays)
    return checked(options.dataset, arrays, len(names))


class TorchvisionOptions(Settings):
    """A class of torchvision.datasets that takes root, train and download."""

    dataset: str  # for example CIFAR10
    root: str
    download: bool = False


def load_torchvision(options: TorchvisionOptions) -> Dataset:
    """Images N×C×H×W in 0…1. Untested: torchvision brings another torch than the one pinned here."""
    try:
        library: Any = importlib.import_module("torchvision.datasets")
    except (ModuleNotFoundError, RuntimeError) as error:
        raise EngineMissingError(
            f"torchvision cannot be used: {error}", fix="pip install torchvision"
        ) from error
    kind = getattr(library, options.dataset, None)
    if kind is None:
        raise ConfigError(f"torchvision.datasets has no {options.dataset!r}")
    arrays: dict[str, Any] = {}
    for name in ("train", "test"):
        try:
            found = kind(root=options.root, train=name == "train", download=options.download)
        except (RuntimeError, TypeError, OSError) as error:
            raise ConfigError(
                f"{options.dataset}: {error}",
                where=options.root,
                fix="set download: true, or name its folder",
            ) from error
        arrays[f"x_{name}"] = np.stack([np.asarray(found[i][0]) for i in range(len(found))])
        arrays[f"y_{name}"] = np.array([found[i][1] for i in range(len(found))])
    return checked(options.dataset, arrays, None)


def _local(options: HuggingFaceOptions) -> list[Path]:
    return [Path(path) for path in (options.files or {}).values()]


HUGGINGFACE: Final = DataSource(
    settings=HuggingFaceOptions,
    load="hwopt.data.hubs:load_huggingface",
    files=_local,
    libraries=("datasets",),
)
TORCHVISION: Final = DataSource(
    settings=TorchvisionOptions, load="hwopt.data.hubs:load_torchvision", paths=(), libraries=("torchvision",)
)
