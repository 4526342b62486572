from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwopt.core.dataset import Dataset
from hwopt.core.progress import silent
from hwopt.errors import StageFailedError
from hwopt.plugins import resolve, table
from hwopt.training.loop import (
    batches,
    build_optimizer,
    fit,
    parameter_groups,
    refresh_batch_norm,
    split,
)
from hwopt.training.settings import EarlyStopping, FitSettings, OptimizerSettings, ScheduleSettings


def blobs(n: int = 240) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = (rng.normal(size=(n, 4)) + 4 * np.eye(4)[y]).astype(np.float32)
    return Dataset(name="blobs", x_train=x, y_train=y, x_test=x, y_test=y, classes=3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.mark.parametrize("name", sorted(table("optimizer")))
def test_every_optimizer_learns(name: str) -> None:
    model, data = net(), split(blobs(), 0.2, 0)
    history = fit(
        model, data, FitSettings(epochs=30, batch_size=8, optimizer=OptimizerSettings(name=name)),
        seed=0, progress=silent, label="t",
    )  # fmt: skip
    assert float(str(history.epochs[-1]["validation_accuracy"])) >= 0.9


@pytest.mark.parametrize("name", sorted(table("optimizer")))
def test_optimizer_is_torchs_own(name: str) -> None:
    """Twenty steps equal those of the torch class with the options that the name stands for."""
    spec = resolve("optimizer", name)
    library, _, kind = spec.reference.partition(":")
    assert library == "torch.optim"
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimizer(
        OptimizerSettings(name=name, lr=0.01), [{"params": list(ours.parameters()), "weight_decay": 0.1}]
    )
    reference = getattr(torch.optim, kind)(theirs.parameters(), lr=0.01, weight_decay=0.1, **spec.fixed)
    for step in range(20):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)


def test_repeats_bit_for_bit() -> None:
    states = []
    for _ in range(2):
        model = net()
        fit(
            model,
            split(blobs(), 0.1, 3),
            FitSettings(epochs=2, batch_size=32),
            seed=3,
            progress=silent,
            label="t",
        )
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = torch.cat(list(batches(10, 3, 1, 0)))
    assert torch.equal(first, torch.cat(list(batches(10, 3, 1, 0))))
    assert not torch.equal(first, torch.cat(list(batches(10, 3, 1, 1))))
    assert len(first) == 9  # a last batch of one would break batch norm


def test_split_is_disjoint_and_leaves_the_test_alone() -> None:
    data = split(blobs(), 0.25, 0)
    assert (len(data.x), len(data.x_validation)) == (180, 60)
    together = torch.cat([data.x, data.x_validation])
    assert len(torch.unique(together, dim=0)) == 240


def test_decay_falls_on_matrices_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.dim() for p in decayed["params"]] == [4, 2]  # type: ignore[attr-defined]
    assert all(p.dim() == 1 for p in plain["params"])  # type: ignore[attr-defined]
    assert plain["weight_decay"] == 0.0


def test_diverging_run_is_a_failed_stage() -> None:
    settings = FitSettings(
        epochs=3, optimizer=OptimizerSettings(name="sgd", lr=100.0), clip_norm=None,
        schedule=ScheduleSettings(name="constant"), batch_size=8,
    )  # fmt: skip
    wide = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    with pytest.raises(StageFailedError, match="the loss became"):
        fit(wide, split(blobs(), 0.1, 0), settings, seed=0, progress=silent, label="t")


def test_early_stopping_restores_the_best() -> None:
    said: list[str] = []
    settings = FitSettings(
        epochs=60, batch_size=8, early_stopping=EarlyStopping(patience=2),
        optimizer=OptimizerSettings(lr=0.1), schedule=ScheduleSettings(name="constant"),
    )  # fmt: skip
    model = net()
    data = split(blobs(), 0.3, 0)
    history = fit(model, data, settings, seed=0, progress=said.append, label="t")
    assert len(history.epochs) == history.best_epoch + 2 < 60
    losses = [float(str(e["validation_loss"])) for e in history.epochs]
    model.eval()
    loss = nn.functional.cross_entropy(model(data.x_validation), data.y_validation)
    assert float(loss.detach()) == pytest.approx(min(losses), rel=1e-5)


def test_batch_norm_is_estimated_anew() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = torch.cat([torch.randn(5000, 4), torch.randn(5000, 4) * 3 + 9])  # sorted by class
    refresh_batch_norm(model, x)
    torch.testing.assert_close(model[0].running_mean, x.mean(0), atol=0.4, rtol=0)
    assert model[0].momentum == 0.1
