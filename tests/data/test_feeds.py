from __future__ import annotations

import numpy as np
import pytest

from hwopt.data.feeds import feeds
from hwopt.errors import ConfigError

SHAPES = {"x": (None, 3), "state": (2, None, 4)}
TYPES = {"x": np.float32, "state": np.float32}


def test_the_first_axis_is_cut_into_batches() -> None:
    calls = feeds({"x": np.zeros((40, 3))}, {"x": (None, 3)}, TYPES, where=None)
    assert [len(call["x"]) for call in calls] == [16, 16, 8]
    assert calls[0]["x"].dtype == np.float32
    fixed = feeds({"x": np.zeros((40, 3))}, {"x": (12, 3)}, TYPES, where=None)
    assert [len(call["x"]) for call in fixed] == [12, 12, 12]  # the last four do not fill a batch


def test_one_axis_more_is_a_call_an_entry() -> None:
    calls = feeds({"x": np.zeros((5, 1, 3)), "state": np.zeros((5, 2, 1, 4))}, SHAPES, TYPES, where=None)
    assert len(calls) == 5
    assert calls[0]["state"].shape == (2, 1, 4)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((5, 1, 3))}, "no array for the input 'state'"),
        ({"x": np.zeros((5, 1, 3)), "state": np.zeros((4, 2, 1, 4))}, "differ in length"),
        ({"x": np.zeros((5, 1, 3)), "state": np.zeros((5, 2, 1, 5))}, "has the shape"),
        ({"x": np.zeros((0, 1, 3)), "state": np.zeros((0, 2, 1, 4))}, "empty"),
        ({"x": np.full((5, 1, 3), np.inf), "state": np.zeros((5, 2, 1, 4))}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        feeds(arrays, SHAPES, TYPES, where="f.npz")


def test_floats_are_not_turned_into_indices() -> None:
    with pytest.raises(ConfigError, match="holds float64, and the model takes int64"):
        feeds({"ids": np.zeros((4, 8))}, {"ids": (None, None)}, {"ids": np.int64}, where=None)
