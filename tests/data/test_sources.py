from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from hwopt.core.choices import Choice
from hwopt.data.arrays import checked
from hwopt.data.digits import DigitsOptions
from hwopt.data.digits import load as load_digits_set
from hwopt.data.idx import FILES, IdxOptions, read_idx
from hwopt.data.idx import load as load_idx
from hwopt.data.load import fingerprint
from hwopt.errors import ConfigError
from tests.conftest import SHARED_DATA


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(folder: Path, *, compressed: bool = True) -> None:
    rng = np.random.default_rng(0)
    for key, name in FILES.items():
        array = rng.integers(0, 256, (20, 28, 28)) if key.startswith("x") else np.arange(20) % 10
        data = idx_bytes(array.astype(np.uint8))
        path = folder / (name + (".gz" if compressed else ""))
        path.write_bytes(gzip.compress(data) if compressed else data)


@pytest.mark.parametrize("compressed", [True, False])
def test_idx(tmp_path: Path, compressed: bool) -> None:
    mnist_like(tmp_path, compressed=compressed)
    data = load_idx(IdxOptions(root=str(tmp_path)))
    assert data.x_train.shape == (20, 1, 28, 28)
    assert data.x_train.dtype == np.float32
    assert 0 <= data.x_train.min() <= data.x_train.max() <= 1
    assert data.classes == 10


@pytest.mark.parametrize("damage", ["cut", "flip", "extra", "header", "sum"])
def test_damaged_idx(tmp_path: Path, damage: str) -> None:
    array = np.arange(5000, dtype=np.uint8).reshape(50, 100)
    packed = bytearray(gzip.compress(idx_bytes(array)))
    if damage == "cut":
        packed = packed[:-20]
    elif damage == "flip":
        packed[len(packed) // 2] ^= 0xFF
    elif damage == "extra":
        packed = bytearray(gzip.compress(idx_bytes(array) + b"more"))
    elif damage == "header":
        packed = bytearray(gzip.compress(b"\0\0\x0d\x02" + idx_bytes(array)[4:]))
    else:
        packed[-6] ^= 1  # of the checksum
    path = tmp_path / "f.gz"
    path.write_bytes(packed)
    with pytest.raises(ConfigError):
        read_idx(path)


@pytest.mark.needs_data("mnist")
def test_real_mnist() -> None:
    data = load_idx(IdxOptions(root=str(SHARED_DATA / "mnist")))
    assert (len(data.x_train), len(data.x_test)) == (60_000, 10_000)
    assert np.bincount(data.y_test)[:2].tolist() == [980, 1135]  # as published


def test_digits_split_is_fixed_and_disjoint() -> None:
    a, b = load_digits_set(DigitsOptions()), load_digits_set(DigitsOptions())
    assert np.array_equal(a.x_test, b.x_test)
    assert len(a.x_train) + len(a.x_test) == 1797
    assert sorted(np.unique(a.y_test)) == list(range(10))


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    base = {
        "x_train": np.full((6, 4, 5, 3), 255, np.uint8), "y_train": np.arange(6) % 2,
        "x_test": np.zeros((2, 4, 5, 3), np.uint8), "y_test": np.arange(2),
    }  # fmt: skip
    return {**base, **changes}


def test_images_become_channels_first_in_0_to_1() -> None:
    data = checked("d", arrays())
    assert data.x_train.shape == (6, 3, 4, 5)
    assert data.x_train.max() == 1.0


def test_tables_and_float_labels() -> None:
    table = np.random.default_rng(0).normal(size=(6, 7))
    data = checked("d", arrays(x_train=table, x_test=table[:2], y_train=np.array([0.0, 1, 0, 1, 0, 1])))
    assert data.sample_shape == (7,)
    with pytest.raises(ConfigError, match="one whole number"):
        checked("d", arrays(y_train=np.array([0.5, 1, 0, 1, 0, 1])))


def test_stated_classes_allow_an_unseen_one() -> None:
    data = checked("d", arrays(y_test=np.array([0, 2])), classes=3)
    assert data.classes == 3


def test_fingerprint_follows_contents_not_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mnist_like(tmp_path / name, compressed=False)

    def of(folder: str) -> str:
        choice = Choice(name="mnist", factory=None, options={"root": str(tmp_path / folder)})
        return fingerprint(choice, lambda: pytest.fail("the data set was loaded"))

    assert of("a") == of("b")
    (tmp_path / "b" / FILES["y_test"]).write_bytes(b"other")
    assert of("a") != of("b")
