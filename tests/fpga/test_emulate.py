"""The emulation: integers and shifts, equal to the file's own arithmetic, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwopt.comparison import as_written
from hwopt.errors import ConfigError
from hwopt.fpga.emulate import Circuit
from hwopt.fpga.estimate import Wish, estimate
from hwopt.fpga.fixed import divide_half_even
from hwopt.layer_table import layer_table
from hwopt.testing.models import float_model, quantized_model
from tests.fpga.nets import fabric, mlp, quantized


class Branches(nn.Module):
    """Concatenation, an average over windows, a gate, a strided convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.c = nn.Conv2d(8, 6, 3, stride=2)
        self.d = nn.Conv2d(6, 6, 1, groups=3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
        y = nn.functional.avg_pool2d(torch.relu(self.c(both)), 2)
        y = self.d(y) * y
        out: torch.Tensor = self.head(y.mean((2, 3)))
        return out


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3)])
def test_equal_to_the_file_as_written(tmp_path: Path, bits: tuple[int, int]) -> None:
    torch.manual_seed(0)
    path = quantized(tmp_path, Branches(), (2, 12, 12), bits)
    x = np.random.default_rng(1).random((40, 2, 12, 12)).astype(np.float32)
    assert np.array_equal(Circuit(path).run(x)[0], as_written(path, x))


@pytest.mark.parametrize("bits", [(12, 10), (8, 16)])
def test_more_than_eight_bits(tmp_path: Path, bits: tuple[int, int]) -> None:
    path = quantized(tmp_path, mlp(16, 8, 4), (16,), bits)
    x = np.random.default_rng(1).random((40, 16)).astype(np.float32)
    assert {(a.weight_bits, a.activation_bits) for a in layer_table(path)} == {bits}
    assert np.array_equal(Circuit(path).run(x)[0], as_written(path, x))


def test_equal_for_depthwise_residual_and_pooling(tmp_path: Path) -> None:
    path, twin = quantized_model(tmp_path, "zcu104")
    x = np.random.default_rng(1).normal(0.5, 1.0, (64, 1, 8, 8)).astype(np.float32)  # beyond the range, too
    ours = Circuit(path).run(x)[0]
    assert np.array_equal(ours, as_written(path, x))
    assert np.allclose(ours, twin(x), atol=0.05)


def test_one_changed_weight_is_seen(tmp_path: Path) -> None:
    """The comparison can fail: a file with one code changed computes something else."""
    path = quantized(tmp_path, mlp(16, 8, 4), (16,))
    x = np.random.default_rng(1).random((32, 16)).astype(np.float32)
    before = Circuit(path).run(x)[0]
    model = onnx.load(path)
    stored = next(
        i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2
    )
    codes = onnx.numpy_helper.to_array(stored).copy()
    codes[0, 0] += 1 if codes[0, 0] < 0 else -1
    stored.CopyFrom(onnx.numpy_helper.from_array(codes, stored.name))
    onnx.save(model, tmp_path / "other.onnx")
    assert not np.array_equal(before, Circuit(tmp_path / "other.onnx").run(x)[0])


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**12))
def test_division_rounds_ties_to_even(value: int, divisor: int) -> None:
    from fractions import Fraction

    found = divide_half_even(np.array([value]), divisor)
    assert int(found[0]) == round(Fraction(value, divisor))


def test_scales_that_no_shift_aligns_are_refused(tmp_path: Path) -> None:
    """A residual sum of two scales would take a multiplier, which no FPGA tool builds."""
    path, _ = quantized_model(tmp_path, "x86-avx512-vnni")
    x = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(ConfigError, match="summands have scales that no shift aligns"):
        Circuit(path).run(x)


def test_other_scales_become_thresholds(tmp_path: Path) -> None:
    """Free scales and zero points, as other tools write them: every accumulator stays an integer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(72, 5)
    )  # fmt: skip
    path = quantized(tmp_path, net, (2, 12, 12), device="x86-avx512-vnni")
    x = np.random.default_rng(1).random((60, 2, 12, 12)).astype(np.float32)
    ours, written = Circuit(path).run(x)[0], as_written(path, x)
    # The file rounds sums in float32: here and there a value at the edge of a code falls on its other side.
    assert np.mean(np.abs(ours - written) < 1e-5) > 0.95
    assert (ours.argmax(1) == written.argmax(1)).mean() > 0.95
    layers = layer_table(path)
    assert all(layer.thresholds for layer in layers if layer.is_weighted)
    shifted = layer_table(quantized(tmp_path, net, (2, 12, 12)))
    assert not any(layer.thresholds for layer in shifted)
    costs = [
        estimate(table, fabric(), Wish(frames_per_second=1000))[0].needs["lut"].estimate
        for table in (layers, shifted)
    ]
    assert costs[0] > costs[1]


def test_a_float_model_is_refused(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    with pytest.raises(ConfigError, match="an input of Conv is not quantized"):
        Circuit(path).run(np.zeros((1, 1, 8, 8), np.float32))
