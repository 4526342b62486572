"""Questions before and after a training, on copies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hwopt.data.digits import DigitsOptions, load
from hwopt.models import mlp
from hwopt.models.zoo import MlpOptions
from hwopt.training.batches import Split, split
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.loop import fit
from hwopt.training.probes import batch_probe, noise_scale, preflight
from hwopt.training.range_test import range_test
from hwopt.training.settings import FitSettings
from hwopt.training.surface import grid, random_direction, slice_along, to_int8, top_eigenvalue
from tests.training.nets import equal, net, split_blobs

DATA = split(load(DigitsOptions()), 0.2, 0)
SETTINGS = FitSettings(batch_size=32)


def digits_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp.build((1, 8, 8), 10, MlpOptions(hidden=(32,)))


def quiet(text: str) -> None: ...


def test_a_healthy_network_passes_and_is_left_alone() -> None:
    model, same = digits_net(), digits_net()
    found = preflight(model, DATA, SETTINGS, 10, seed=0)
    assert found.problems == ()
    assert found.even_guess == pytest.approx(math.log(10))
    assert found.by_heart == 1.0
    assert equal(model, same)


def test_broken_networks_are_told_why() -> None:
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, 10))
    with torch.no_grad():
        blind[1].weight.zero_()
        blind[1].bias.fill_(-1.0)
    found = preflight(blind, DATA, SETTINGS, 10, seed=0)
    assert "get only" in found.problems[0]
    loud = digits_net()
    with torch.no_grad():
        loud[-1].weight.mul_(1000)  # type: ignore[index, union-attr, operator]
    assert "the first loss is" in preflight(loud, DATA, SETTINGS, 10, seed=0).problems[0]
    bad = Split(
        x=torch.full((20, 4), math.nan),
        y=torch.arange(20) % 3,
        x_validation=torch.zeros(0, 4),
        y_validation=torch.arange(0),
    )
    assert any("cannot be learnt" in line for line in preflight(net(), bad, SETTINGS, 3, seed=0).problems)


def test_the_range_test_finds_a_rate_that_is_good_enough() -> None:
    """Within a point of the best of a nine-point grid, on at least four of five seeds."""
    grid_rates = [1e-3 * 10 ** (-1.5 + 3 * i / 8) for i in range(9)]
    good = 0
    for seed in range(5):
        model, same = digits_net(seed), digits_net(seed)
        found = range_test(model, DATA, SETTINGS, seeds=(seed, seed + 10, seed + 20))
        assert equal(model, same)
        assert found.suggested is not None
        assert found.low <= found.suggested <= found.high

        def reached(rate: float, seed: int = seed) -> float:
            settings = FitSettings(epochs=4, batch_size=32, optimizer=OptimizerSettings(lr=rate))
            history = fit(digits_net(seed), DATA, settings, seed=seed, progress=quiet, label="t")
            return float(str(history.epochs[-1]["validation_accuracy"]))

        best = max(reached(rate) for rate in grid_rates)
        good += reached(found.suggested) >= best - 0.01
    assert good >= 4


def test_no_clear_answer_is_an_answer() -> None:
    """A network that cannot learn has no best rate."""
    stuck = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, 10, bias=False))
    with torch.no_grad():
        stuck[1].weight.zero_()
        stuck[1].bias.fill_(-1.0)
    assert range_test(stuck, DATA, SETTINGS, steps=5).suggested is None


def test_the_warm_up_shrinks_with_the_test() -> None:
    """500 steps of warm-up out of 5,000 must not keep all thirty steps at a low rate."""
    found = []
    for warmup in (0.1, 10 * (len(DATA.x) // 32)):  # a tenth, as a share and in steps
        settings = FitSettings(
            epochs=100, batch_size=32, schedule=ScheduleSettings(name="cosine", warmup=warmup)
        )
        found.append(range_test(digits_net(), DATA, settings, seeds=(0,)).losses)
    assert found[0] == found[1]


def test_the_batch_that_is_returned_was_run() -> None:
    found = batch_probe(digits_net(), DATA, SETTINGS, memory_bytes=10**12, largest=256)
    assert found.chosen in found.sizes
    assert found.sizes[:2] == (16, 32)
    small = batch_probe(net(), split_blobs(30, 0.0), SETTINGS, memory_bytes=10**12)
    assert max(small.sizes) <= 30
    auto = FitSettings.model_construct(**{**dict(SETTINGS), "optimizer": OptimizerSettings(lr="auto")})
    assert batch_probe(digits_net(), DATA, auto, memory_bytes=10**12, largest=16).chosen == 16


def test_noise_scale_is_that_of_a_known_problem() -> None:
    """Mean of Gaussians: gradient noise per sample 4 in each of 2 dimensions, gradient (1, 0): scale 8 / 1."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = x @ self.w
            return torch.stack([score, torch.zeros_like(score)], 1)

    generator = torch.Generator().manual_seed(0)
    # cross-entropy at w = 0 with label 1 has the gradient x / 2, so x is twice the gradient wanted
    x = 2 * (torch.tensor([1.0, 0.0]) + 2 * torch.randn(200_000, 2, generator=generator))
    data = Split(
        x=x, y=torch.ones(len(x), dtype=torch.int64), x_validation=x[:0], y_validation=torch.arange(0)
    )
    found = noise_scale(Linear(), data, small=32, count=2000)
    assert found.samples == pytest.approx(8.0, rel=0.15)


def test_curvature_of_a_known_problem() -> None:
    """Logistic regression at w = 0: the Hessian of the mean loss is mean(x²) / 4 · [[1, -1], [-1, 1]]."""
    x = torch.tensor([[1.0], [3.0]])
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    value, change = top_eigenvalue(model, x, torch.tensor([0, 1]))
    assert value == pytest.approx(5.0 / 4 * 2, rel=1e-3)
    assert change < 1e-2


def test_slices_meet_at_the_weights() -> None:
    model, same = digits_net(), digits_net()
    x, y = DATA.x[:64], DATA.y[:64]
    direction = random_direction(model, 0)
    for parameter, step in zip(model.parameters(), direction, strict=True):
        if parameter.dim() > 1:  # filter by filter as long as the weights
            torch.testing.assert_close(step.flatten(1).norm(dim=1), parameter.detach().flatten(1).norm(dim=1))
        else:
            assert not step.any()
    found = slice_along(model, direction, (-1.0, 0.0, 1.0), x, y, "random")
    model.eval()
    own = float(nn.functional.cross_entropy(model(x), y).detach())
    assert found.losses[1] == pytest.approx(own)
    away = slice_along(model, to_int8(model), (0.0, 1.0), x, y, "int8")
    assert abs(away.losses[1] - own) < 0.05
    rows = grid(model, direction, to_int8(model), (0.0, 1.0), x, y)
    assert rows[0][0] == pytest.approx(own)
    assert rows[0][1] == pytest.approx(found.losses[2])
    assert rows[1][0] == pytest.approx(away.losses[1])
    model.train()
    assert equal(model, same)
