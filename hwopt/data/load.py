"""From a choice to a data set, by name or by the user's own function; and its fingerprint."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwopt.core.canonical import JSON, canonical_json, digest_of, digest_of_file
from hwopt.core.choices import Choice, DataSource
from hwopt.core.dataset import Dataset
from hwopt.data.arrays import KEYS, checked
from hwopt.errors import ConfigError
from hwopt.plugins import load_reference, resolve

CallFactory = Callable[[str, Mapping[str, JSON]], Any]


def load_dataset(choice: Choice, call: CallFactory) -> Dataset:
    """The data set of ``choice``; ``call`` runs the user's function.

    The user's function returns a mapping with x_train, y_train, x_test, y_test, or the four in a tuple.
    """
    if choice.name is not None:
        source: DataSource = resolve("data", choice.name)
        dataset: Dataset = load_reference(source.load)(_options(source, choice))
        return dataset
    given = call(str(choice.factory), choice.options)
    if isinstance(given, Dataset):
        given = {key: getattr(given, key) for key in (*KEYS, "classes")}
    if isinstance(given, tuple) and len(given) == len(KEYS):
        given = dict(zip(KEYS, given, strict=True))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{choice.factory} returned {type(given).__name__}",
            fix="return a dictionary of arrays: " + ", ".join(KEYS),
        )
    try:
        arrays = {str(k): np.asarray(v) for k, v in given.items() if str(k) in KEYS}
    except ValueError as error:
        raise ConfigError(
            f"{choice.factory} returned something that is no array: {error}", fix="return NumPy arrays"
        ) from None
    classes = given.get("classes")
    return checked(str(choice.factory), arrays, classes if isinstance(classes, int) else None)


def _options(source: DataSource, choice: Choice) -> Any:
    return source.settings.model_validate_json(canonical_json(dict(choice.options)))


def fingerprint(choice: Choice, dataset: Callable[[], Dataset]) -> str:
    """Digest of the contents: of the files, of the package that carries them, or of the arrays themselves."""
    facts: dict[str, JSON] = {}
    if choice.name is None:
        facts = {"choice": choice.to_json(), "arrays": _digest_of_arrays(dataset())}
        return digest_of(facts)
    source: DataSource = resolve("data", choice.name)
    options = _options(source, choice)
    # Options that say where the files lie are left out: moved data is the same data.
    facts = {
        "name": choice.name,
        "options": {k: v for k, v in choice.options.items() if k not in source.paths},
    }
    try:
        facts["files"] = [digest_of_file(path) for path in source.files(options)]
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror or error}",
            where=str(error.filename),
            fix="name a readable file",
        ) from None
    facts["libraries"] = {name: importlib.metadata.version(name) for name in source.libraries}
    return digest_of(facts)


def _digest_of_arrays(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for key in KEYS:
        array = getattr(dataset, key)
        digest.update(f"{key}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return "sha256:" + digest.hexdigest()
