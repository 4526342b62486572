"""Texts from JSON lines: one object a line with a text, a label and, if there is one, a split."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings
from hwopt.errors import ConfigError

_WORD: Final = re.compile(r"[a-z0-9']+|[^\sa-z0-9]")
_MAX_CHARACTERS: Final = 1 << 30
PADDING, UNKNOWN = 0, 1


class JsonLinesOptions(Settings):
    """Where the texts are, and how they become token sequences."""

    path: str  # plain or gzip
    text: str = "text"  # name of the field
    label: str = "label"
    split: str | None = None  # field that says train or test; None: a seeded share is the test split
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    words: Annotated[int, Field(ge=10, le=1_000_000)] = 8000  # of the training texts, the most frequent ones
    length: Annotated[int, Field(ge=1, le=100_000)] = 256  # tokens; what is longer is cut
    vectors: str | None = None  # word vectors, a word and its numbers a line; fill the model's embedding


def tokens(text: str) -> list[str]:
    """Words in lower case, and every other sign by itself."""
    return _WORD.findall(text.lower())


def vocabulary(texts: Iterable[str], words: int) -> tuple[str, ...]:
    """Padding, unknown, then the most frequent words; ties in the order of the alphabet."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokens(text))
    ranked = sorted(counts, key=lambda w: (-counts[w], w))
    return ("", "?", *ranked[: words - 2])


def encode(texts: Sequence[str], known: Sequence[str], length: int) -> tuple[npt.NDArray[np.int64], float]:
    """Token ids, N×length, padded behind with 0; and the share of tokens that are unknown."""
    number = {word: index for index, word in enumerate(known)}
    ids = np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        found = [number.get(word, UNKNOWN) for word in tokens(text)[:length]] or [UNKNOWN]
        ids[row, : len(found)] = found
    used = int((ids != PADDING).sum())
    return ids, float((ids == UNKNOWN).sum() / max(1, used))


def load(options: JsonLinesOptions) -> Dataset:
    """Token sequences N×length; classes in the order of their labels."""
    path = Path(options.path)
    rows = list(_rows(path, options))
    if not rows:
        raise ConfigError("the file holds no text", where=str(path), fix="one JSON object a line")
    labels = sorted({label for _, label, _ in rows}, key=lambda v: (isinstance(v, str), v))
    if len(labels) < 2:
        raise ConfigError(f"all texts have the label {labels[0]!r}", where=str(path))
    if options.split is None:
        test = np.random.default_rng(1).random(len(rows)) < options.test_share
    else:
        test = np.array([part == "test" for _, _, part in rows])
    if test.all() or not test.any():
        raise ConfigError(
            f"all {len(rows)} texts are in one split", where=str(path), fix="set split or test_share"
        )
    texts = [text for text, _, _ in rows]
    train_texts = [text for text, held in zip(texts, test, strict=True) if not held]
    known = vocabulary(train_texts, options.words)
    ids, unknown = encode(texts, known, options.length)
    y = np.array([labels.index(label) for _, label, _ in rows], np.int64)
    facts: dict[str, Any] = {
        "labels": [str(label) for label in labels],
        "vocabulary": len(known),
        "unknown_share": unknown,
        "cut_share": float(np.mean([len(tokens(t)) > options.length for t in texts])),
    }
    vectors = None
    if options.vectors is not None:
        vectors, share = read_vectors(Path(options.vectors), known)
        facts["words_without_vector"] = share
    return Dataset(
        name=path.name.partition(".")[0],
        x_train=ids[~test],
        y_train=y[~test],
        x_test=ids[test],
        y_test=y[test],
        classes=len(labels),
        vocabulary=known,
        vectors=vectors,
        facts=facts,
    )


def _rows(path: Path, options: JsonLinesOptions) -> Iterator[tuple[str, Any, str]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    size = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                size += len(line)
                if size > _MAX_CHARACTERS:
                    raise ConfigError(f"more than {_MAX_CHARACTERS:,} characters", where=f"{path}:{number}")
                if line.strip():
                    yield _row(line, f"{path}:{number}", options)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=str(path), fix="give UTF-8 text or gzip"
        ) from None


def _row(line: str, where: str, options: JsonLinesOptions) -> tuple[str, Any, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"no JSON: {error}", where=where, fix="one JSON object a line") from None
    wanted = [options.text, options.label, *([options.split] if options.split else [])]
    missing = [name for name in wanted if not isinstance(row, dict) or name not in row]
    if missing:
        raise ConfigError(
            f"the field {missing[0]!r} is not there", where=where,
            fix=f"it has {', '.join(row) if isinstance(row, dict) else 'no fields'}; name yours under data",
        )  # fmt: skip
    text, label = row[options.text], row[options.label]
    if not isinstance(text, str) or not isinstance(label, str | int):
        raise ConfigError(
            "the text is no text, or the label neither number nor text", where=where, fix="repair the line"
        )
    try:
        f"{text}{label}".encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "the text holds half of a character (a lone surrogate)", where=where, fix="repair the line"
        ) from None
    part = str(row[options.split]) if options.split else ""
    if options.split and part not in {"train", "test"}:
        raise ConfigError(f"the split is {part!r}", where=where, fix="write train or test")
    return text, label, part


def read_vectors(path: Path, known: Sequence[str]) -> tuple[npt.NDArray[np.float32], float]:
    """A row for every word of the vocabulary, zero where the file has none; and the share of those.

    Format: a word and its numbers a line, blanks between (GloVe); a first line with two numbers is skipped
    (word2vec, fastText).
    """
    number = {word: index for index, word in enumerate(known)}
    table: npt.NDArray[np.float32] | None = None
    found: set[str] = set()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for row, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if row == 1 and len(values) == 1:
                    continue
                if not word or word not in number or word in found:
                    continue
                try:
                    vector = np.array(values, np.float32)
                except ValueError:
                    raise ConfigError(
                        "a line holds something that is no number", where=f"{path}:{row}"
                    ) from None
                if not len(vector):
                    raise ConfigError(
                        "a word without numbers", where=f"{path}:{row}", fix="a word and its numbers a line"
                    )
                if table is None:
                    table = np.zeros((len(known), len(vector)), np.float32)
                if vector.shape != table.shape[1:]:
                    raise ConfigError(
                        f"the vector has {len(vector)} numbers, others {table.shape[1]}",
                        where=f"{path}:{row}",
                    )
                if not np.isfinite(vector).all():
                    raise ConfigError("the vector holds NaN or infinity", where=f"{path}:{row}")
                table[number[word]] = vector
                found.add(word)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if table is None:
        raise ConfigError(
            "the file has a vector for none of the words", where=str(path), fix="words in lower case"
        )
    words = set(known[2:])
    return table, 1 - len(found & words) / max(1, len(words))


def files(options: JsonLinesOptions) -> list[Path]:
    """Whose contents the data set is made of."""
    return [Path(options.path), *([Path(options.vectors)] if options.vectors else [])]


SOURCE: Final = DataSource(
    settings=JsonLinesOptions, load="hwopt.data.text:load", files=files, paths=("path", "vectors")
)
