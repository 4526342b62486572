from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwopt.core.choices import Choice
from hwopt.core.dataset import Dataset
from hwopt.data.load import fingerprint, load_dataset
from hwopt.data.text import JsonLinesOptions, encode, load, tokens, vocabulary
from hwopt.errors import ConfigError

SPAM = Path(__file__).parents[3] / "shared" / "data" / "spam" / "spam.jsonl.gz"


def opened(name: str, **options: Any) -> Dataset:
    return load_dataset(Choice(name=name, factory=None, options=options), lambda *_: None)


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


ROWS = [
    {"text": "Buy now, buy!", "label": "spam", "split": "train"},
    {"text": "see you at noon", "label": "ham", "split": "train"},
    {"text": "buy the unseen", "label": "spam", "split": "test"},
    {"text": "noon", "label": "ham", "split": "test"},
]


def test_tokens_and_vocabulary() -> None:
    assert tokens("Don't PANIC, 42!") == ["don't", "panic", ",", "42", "!"]
    assert vocabulary(["b a b", "c a"], 4) == ("", "?", "a", "b")
    ids, unknown = encode(["a z", "", "b b b b"], ("", "?", "a", "b"), 3)
    assert ids.tolist() == [[2, 1, 0], [1, 0, 0], [3, 3, 3]]
    assert unknown == pytest.approx(2 / 6)


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("t.jsonl.gz" if packed else "t.jsonl")
    text = "\n".join(json.dumps(row) for row in ROWS)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = opened("jsonl", path=str(path), split="split", words=10, length=4)
    assert found.classes == 2
    assert found.y_train.tolist() == [1, 0]
    assert found.y_test.tolist() == [1, 0]
    assert found.sample_shape == (4,)
    assert found.sample_shape.tokens == len(found.vocabulary) == 10
    assert "unseen" not in found.vocabulary
    assert found.x_test[0].tolist()[2] == 1
    assert found.facts["labels"] == ["ham", "spam"]


def test_word_vectors(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", ROWS)
    (tmp_path / "v.txt").write_text("2 3\nbuy 1 2 3\nnoon 4 5 6\nelsewhere 7 8 9\n")
    found = opened("jsonl", path=path, split="split", words=10, length=4, vectors=str(tmp_path / "v.txt"))
    assert found.vectors is not None
    assert found.vectors[found.vocabulary.index("noon")].tolist() == [4, 5, 6]
    assert found.facts["words_without_vector"] == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("\nbuy 1 2\n\n", None),
        ("buy\nnoon\n", "a word without numbers"),
        ("buy 1 2\nnoon 1\n", "the vector has 1 numbers, others 2"),
        ("buy 1 nan\n", "holds NaN"),
        ("buy 1 x\n", "no number"),
        ("other 1 2\n", "a vector for none of the words"),
        ("? 1 1\nbuy 1 2\n", None),
    ],
)
def test_bad_word_vectors(tmp_path: Path, content: str, text: str | None) -> None:
    path = written(tmp_path / "t.jsonl", ROWS)
    (tmp_path / "v.txt").write_text(content)

    def load_it() -> Dataset:
        return opened("jsonl", path=path, split="split", words=10, length=4, vectors=str(tmp_path / "v.txt"))

    if text is None:
        found = load_it()
        assert 0 <= found.facts["words_without_vector"] <= 1
        assert found.vectors is not None
        assert not found.vectors[0].any()
        return
    with pytest.raises(ConfigError, match=text):
        load_it()


def test_edited_texts_are_other_data(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", ROWS)
    choice = Choice(name="jsonl", factory=None, options={"path": path, "split": "split"})
    first = fingerprint(choice, lambda: load(JsonLinesOptions(path=path)))
    written(tmp_path / "t.jsonl", [*ROWS, ROWS[0]])
    assert fingerprint(choice, lambda: load(JsonLinesOptions(path=path))) != first


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        ([], {}, "holds no text"),
        (["just text"], {}, "the field 'text' is not there"),
        ([{"text": "a", "label": 0}], {}, "all texts have the label 0"),
        ([{"text": 1, "label": 0}], {}, "the text is no text"),
        ([{"body": "a", "label": 0}], {}, "the field 'text' is not there"),
        ([{"text": "\ud800", "label": 0}], {}, "half of a character"),
        (ROWS, {"split": "part"}, "the field 'part' is not there"),
        ([{**r, "split": "dev"} for r in ROWS], {"split": "split"}, "the split is 'dev'"),
        ([{**r, "split": "train"} for r in ROWS], {"split": "split"}, "all 4 texts are in one split"),
    ],
)
def test_bad_json_lines(tmp_path: Path, rows: list[Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened("jsonl", path=written(tmp_path / "t.jsonl", rows), **options)


@pytest.mark.parametrize("content", [b"{", b"\x1f\x8b\x08broken", b"\xff\xfe\x00"])
def test_files_that_are_no_json_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("t.jsonl.gz" if content.startswith(b"\x1f") else "t.jsonl")
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        opened("jsonl", path=str(path))
    assert str(path) in str(caught.value)


def test_a_table(tmp_path: Path) -> None:
    lines = ["size,colour,kind"] + [
        f"{i},{'red' if i % 3 else 'blue'},{'big' if i > 20 else 'small'}" for i in range(40)
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = opened("csv", path=str(tmp_path / "t.csv"), label="kind")
    assert found.x_train.shape[1] == 3
    assert abs(float(found.x_train[:, 0].mean())) < 1e-5
    assert set(np.unique(found.x_train[:, 1:])) == {0.0, 1.0}
    assert found.classes == 2
    assert len(found.x_train) + len(found.x_test) == 40


@pytest.mark.parametrize(
    ("content", "text", "where"),
    [
        ("a,b\n1,x\n2,y\n", "there is no column 'kind'", ":1"),
        ("a,kind\n1,x\n2\n", "1 fields, and the first line has 2", ":3"),
        ("a,kind\n1,x\n,y\n3,x\n", "a is empty", ":3"),
        ("a,kind\n", "fewer than two rows", ""),
        ("kind\nx\ny\nx\ny\nx\ny\nx\ny\n", "no column besides the label", ":1"),
        ("a,kind\n1,x\n\n\n2,y\nnan,x\n", "a is nan", ":6"),
        ("a,kind\n1,x\n1e308,y\n", "a is 1e308", ":3"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, text: str, where: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ConfigError, match=text) as caught:
        opened("csv", path=str(tmp_path / "t.csv"), label="kind")
    assert f"t.csv{where}" in str(caught.value)


@pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="Pillow (the extra images) is not installed"
)
def test_folders_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 3), ("test", 1)):
        for label, shade in (("dark", 10), ("light", 240)):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (12 + i, 10), (shade, shade, shade)).save(folder / f"{i}.png")
    found = opened("images", root=str(tmp_path), size=8)
    assert found.x_train.shape == (6, 3, 8, 8)
    assert found.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert float(found.x_test[1].mean()) == pytest.approx(240 / 255, abs=1e-3)
    (tmp_path / "train" / "dark" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="not a readable image"):
        opened("images", root=str(tmp_path), size=8)
    (tmp_path / "train" / "dark" / "bad.png").unlink()
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "train" / "dark" / "deep.png")
    with pytest.raises(ConfigError, match="whose scale is not known"):
        opened("images", root=str(tmp_path), size=8)
    with pytest.raises(ConfigError, match="no image below"):
        opened("images", root=str(tmp_path / "train"), size=8)


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets (the extra huggingface) is not installed"
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_from_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = {
        p: written(tmp_path / f"{p}.jsonl", [r for r in ROWS if r["split"] == p]) for p in ("train", "test")
    }
    found = opened("huggingface", dataset="json", files=files, input="text", length=4)
    assert found.classes == 2
    assert found.x_train.shape == (2, 4)
    assert found.vocabulary[:2] == ("", "?")


@pytest.mark.skipif(not SPAM.is_file(), reason="the shared mails are not here")
def test_the_mails() -> None:
    found = opened("jsonl", path=str(SPAM), split="split", length=64)
    assert (len(found.x_train), len(found.x_test)) == (4734, 1175)
    assert found.x_train.dtype == np.int64
    assert 0 < found.facts["unknown_share"] < 0.1
