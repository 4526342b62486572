from __future__ import annotations

import pytest
import torch
from torch import nn

from hwopt.core.progress import silent
from hwopt.training.batches import batches, split
from hwopt.training.build import parameter_groups, roles
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.evaluation import refresh_batch_norm
from hwopt.training.loop import fit
from hwopt.training.settings import EarlyStopping, FitSettings
from tests.training.nets import blobs, net


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
    decayed, plain = parameter_groups(list(model.named_parameters()), roles(model), 0.1)
    assert [p.dim() for p in decayed["params"]] == [4, 2]
    assert all(p.dim() == 1 for p in plain["params"])
    assert plain["weight_decay"] == 0.0


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
