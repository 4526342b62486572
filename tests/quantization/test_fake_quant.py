from __future__ import annotations

import numpy as np
import pytest
import torch

from hwopt.core.hardware import TensorScheme
from hwopt.numerics import scales
from hwopt.quantization.fake_quant import BiasQuant, Constant, FakeQuant

U8 = TensorScheme(dtype="uint8", symmetric=False, granularity="tensor")
S8 = TensorScheme(dtype="int8", symmetric=True, granularity="channel", range=(-64, 63))


@pytest.mark.parametrize("zero", [0, 100])
def test_forward_is_the_numpy_reference(zero: int) -> None:
    grid = FakeQuant(U8)
    grid.set_scale(0.03)
    grid.set_zero_point(zero)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 5
    scale = float(grid.effective_scale().detach())
    expected = scales.fake_quantize(x.numpy(), np.float32(scale), zero, (0, 255))
    torch.testing.assert_close(grid(x).detach(), torch.from_numpy(expected).float(), atol=0, rtol=1e-6)


def test_per_channel_scales_go_along_their_axis() -> None:
    grid = FakeQuant(S8, axis=0, shape=(3, 5))
    grid.set_scale(torch.tensor([1.0, 0.5, 0.25]))
    out = grid(torch.full((3, 2), 0.6))
    torch.testing.assert_close(out.detach()[:, 0], torch.tensor([1.0, 0.5, 0.5]))
    assert grid.codes(torch.full((3, 2), 1e9)).max() == 63


def test_gradients_are_lsq() -> None:
    """Inside: dx = 1 and ds = q - x/s; outside: dx = 0 and ds = the code that was hit (Esser 2020, eq. 3)."""
    grid = FakeQuant(TensorScheme(dtype="int4", symmetric=True, granularity="tensor"))
    grid.set_scale(0.5)
    x = torch.tensor([[0.6, 100.0, -100.0]], requires_grad=True)
    grid(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 0.0]]
    ds = (1 - 0.6 / 0.5) + 7 - 8
    damping = (3 * 7) ** -0.5
    # d(2^l)/dl = 2^l · ln 2
    assert grid.log2_scale.grad is not None
    assert float(grid.log2_scale.grad) == pytest.approx(ds * damping * 0.5 * np.log(2), rel=1e-5)


def test_power_of_two_scales() -> None:
    grid = FakeQuant(U8, power_of_two=True)
    grid.set_scale(0.03)
    assert float(grid.effective_scale().detach()) == 2.0**-5
    grid(torch.rand(10)).sum().backward()
    assert grid.log2_scale.grad is not None  # straight through the rounding


def test_power_of_two_grid_covers_the_ceiling() -> None:
    grid = FakeQuant(U8, ceiling=6.0, power_of_two=True)
    grid.set_scale(6 / 255)
    assert float(grid.effective_scale().detach()) * 255 >= 6.0


def test_grid_never_reaches_beyond_the_ceiling() -> None:
    grid = FakeQuant(U8, ceiling=6.0)
    grid.set_scale(1.0)
    grid(torch.tensor([1.0])).sum().backward()
    assert grid.log2_scale.grad is not None  # and still learns
    assert float(grid.log2_scale.grad) != 0.0
    assert float(grid.effective_scale().detach()) * 255 <= 6.0
    assert float(grid(torch.tensor([99.0])).detach()) <= 6.0


def test_bias_lies_on_the_accumulators_grid() -> None:
    activation, weight = FakeQuant(U8), FakeQuant(S8, axis=0, shape=(2, 4))
    activation.set_scale(0.5)
    weight.set_scale(torch.tensor([0.25, 0.5]))
    bias = BiasQuant(activation, weight)
    assert bias(torch.tensor([0.3, 0.3])).tolist() == pytest.approx([0.25, 0.25])
    assert bias.codes(torch.tensor([0.3, 0.3])).tolist() == [2, 1]
    assert list(bias.parameters()) == []  # the grids belong to the tensors they quantize


def test_stored_constant_equals_the_fake_quantized_one() -> None:
    grid = FakeQuant(S8, axis=0, shape=(4, 3, 3, 3))
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    grid.set_scale(torch.tensor([0.1, 0.03, 0.5, 0.011]))
    stored = Constant(grid.codes(w), grid.effective_scale().flatten(), 0)
    assert torch.equal(stored(), grid(w))


@pytest.mark.parametrize(
    ("scheme", "shape", "axis"),
    [
        (U8, (16, 4, 7, 7), None),
        (S8, (8, 4, 3, 3), 0),
        (TensorScheme(dtype="int4", symmetric=True, granularity="channel", range=(-7, 7)), (5, 16), 1),
    ],
)
def test_the_fused_step_has_the_gradients_of_the_exact_one(
    scheme: TensorScheme, shape: tuple[int, ...], axis: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    seen = []
    for training in (True, False):
        grid = FakeQuant(scheme, axis=axis, shape=shape)
        grid.set_scale(torch.full(grid.log2_scale.shape, 0.023))  # many values outside
        if axis is None:
            grid.set_zero_point(100)
            grid.learn_zero_point()
        grid.train(training)
        given = x.clone().requires_grad_()
        y = grid(given)
        (y * weight).sum().backward()
        seen.append((y.detach(), given.grad, grid.log2_scale.grad, grid.zero_share.grad))
    for fused, exact in zip(*seen, strict=True):
        if exact is not None:
            # Sums in another order; a value at a code's edge would show as a step of 0.023.
            torch.testing.assert_close(fused, exact, atol=1e-5, rtol=1e-5)
