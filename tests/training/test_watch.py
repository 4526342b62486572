"""Alarms: raised where something is wrong, in time, and (almost) nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hwopt.core.progress import silent
from hwopt.data.digits import DigitsOptions, load
from hwopt.errors import StageFailedError
from hwopt.models import cnn, mlp
from hwopt.models.zoo import CnnOptions, MlpOptions
from hwopt.training.batches import split
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.initialize import initialize
from hwopt.training.loop import Training, fit
from hwopt.training.settings import FitSettings
from hwopt.training.watch import fit_verdict, int8_readiness
from tests.training.nets import net, split_blobs

DATA = split(load(DigitsOptions()), 0.1, 0)


def deep(activation: Callable[[], nn.Module], depth: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 32), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(32, 32), activation()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def alarms(model: nn.Module, steps: int, **more: Any) -> tuple[list[Any], int | None]:
    """Alarms of a training, and the step at which it failed."""
    given: dict[str, Any] = {
        "epochs": 1000, "max_steps": steps, "batch_size": 64, "halvings": 0, "clip_norm": None,
        "optimizer": OptimizerSettings(name="sgd", lr=0.05), "schedule": ScheduleSettings(name="constant"), **more,
    }  # fmt: skip
    training = Training(model, DATA, FitSettings(**given), seed=0, progress=silent, label="t")
    failed = None
    try:
        for _ in training.steps():
            pass
    except StageFailedError:
        failed = training.step
    assert training._watch is not None
    return training._watch.alarms, failed


def test_explosion_is_told_before_the_loss_is_no_number() -> None:
    """Initial weights ten times too large: at least nine of ten seeds."""
    caught = 0
    for seed in range(10):
        model = deep(nn.ReLU, 6, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10)
        found, failed = alarms(model, 100)
        assert failed is not None
        first = [a for a in found if a.kind == "exploding"]
        caught += bool(first) and first[0].step < failed
        assert all(a.layer in dict(model.named_parameters()) for a in first)
    assert caught >= 9


def test_vanishing_in_twenty_sigmoids_and_not_in_twenty_relus() -> None:
    found, _ = alarms(deep(nn.Sigmoid, 20, 0), 50)
    assert [(a.kind, a.layer) for a in found] == [("vanishing", "1.weight")]
    assert found[0].step < 50
    healthy = deep(nn.ReLU, 20, 0)
    initialize(healthy, "he", 0)
    found, _ = alarms(healthy, 50)
    assert not [a for a in found if a.kind == "vanishing"]


def test_dead_units() -> None:
    model = deep(nn.ReLU, 4, 0)
    with torch.no_grad():
        model[3].bias.fill_(-100.0)
    found, _ = alarms(model, 120)
    assert ("dead", "4") in [(a.kind, a.layer) for a in found]


@pytest.mark.slow
def test_false_alarms_are_rare() -> None:
    """Healthy networks, 500 steps each: at most one run in twenty has an alarm."""
    runs = 0
    wrong = 0
    for seed in range(5):
        for optimizer in ("adamw", "momentum"):
            for norm in ("batch", "none"):
                torch.manual_seed(seed)
                for model in (
                    cnn.build((1, 8, 8), 10, CnnOptions(width=8, norm=norm)),  # type: ignore[arg-type]
                    mlp.build((1, 8, 8), 10, MlpOptions(hidden=(64, 32), norm=norm)),  # type: ignore[arg-type]
                ):
                    found, failed = alarms(
                        model, 500, clip_norm=1.0, optimizer=OptimizerSettings(name=optimizer),
                        schedule=ScheduleSettings(),
                    )  # fmt: skip
                    runs += 1
                    wrong += bool(found) or failed is not None
    assert runs == 40
    assert wrong <= runs / 20


def test_a_healthy_run_is_quiet() -> None:
    torch.manual_seed(0)
    model = cnn.build((1, 8, 8), 10, CnnOptions(width=8))
    found, failed = alarms(
        model, 200, clip_norm=1.0, optimizer=OptimizerSettings(), schedule=ScheduleSettings()
    )
    assert (found, failed) == ([], None)


def test_a_loss_far_above_guessing_is_told_at_the_start() -> None:
    model = deep(nn.ReLU, 4, 0)
    with torch.no_grad():
        model[-1].bias.copy_(torch.arange(10.0) * 50)
    found, _ = alarms(model, 3)
    assert found[0].kind == "start"
    assert found[0].step == 0


def test_divergence_halves_the_rate_twice_and_then_gives_up() -> None:
    said: list[str] = []
    wide = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    settings = FitSettings(
        epochs=30, optimizer=OptimizerSettings(name="sgd", lr=100.0), clip_norm=None,
        schedule=ScheduleSettings(name="constant"), batch_size=8,
    )  # fmt: skip
    with pytest.raises(StageFailedError, match="after 2 times half the learning rate"):
        fit(wide, split_blobs(), settings, seed=0, progress=said.append, label="t")
    assert sum("half the learning rate" in line and "back to step" in line for line in said) == 2


def test_divergence_is_survived() -> None:
    """A rate just too high: halved from the last good state, recorded, and the training ends well."""
    said: list[str] = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    settings = FitSettings(
        epochs=20, optimizer=OptimizerSettings(name="sgd", lr=0.9), clip_norm=None,
        schedule=ScheduleSettings(name="constant"), batch_size=8, halvings=4,
    )  # fmt: skip
    history = fit(model, split_blobs(), settings, seed=0, progress=said.append, label="t")
    halvings: Any = history.events["halvings"]
    assert 1 <= len(halvings) <= 4
    assert all(entry["back_to"] <= entry["at"] for entry in halvings)
    assert float(str(history.epochs[-1]["validation_accuracy"])) >= 0.9


def test_a_spiky_batch_is_no_divergence() -> None:
    data = split_blobs()
    y = data.y.clone()
    y[:3] = (y[:3] + 1) % 3  # wrong labels: single batches with a large loss
    noisy = type(data)(x=data.x, y=y, x_validation=data.x_validation, y_validation=data.y_validation)
    history = fit(net(), noisy, FitSettings(epochs=40, batch_size=8), seed=0, progress=silent, label="t")
    assert history.events["halvings"] == []


def test_readiness_for_int8_sees_outliers() -> None:
    torch.manual_seed(0)
    good, bad = torch.randn(8, 64), torch.randn(8, 64)
    bad[:, 0] = 100.0
    found = int8_readiness([("good", good), ("bad", bad), ("bias", torch.ones(3))])
    assert set(found) == {"good", "bad"}
    assert float(str(found["good"]["sqnr_db"])) > 40
    assert float(str(found["bad"]["outlier_ratio"])) > 5
    # by hand: one channel, weights 1 and 0.5, scale 1/127, error of 0.5 is 0.5/127·|63.5-64|
    one = int8_readiness([("w", torch.tensor([[1.0, 0.5]]))])["w"]
    assert float(str(one["sqnr_db"])) == pytest.approx(10 * math.log10(1.25 / (0.5 / 127) ** 2), rel=1e-4)


@pytest.mark.parametrize(
    ("epochs", "verdict"),
    [
        ([(1.0, 0.7, 0.9, 0.72), (0.2, 0.99, 1.2, 0.80)], "overfitting"),
        ([(1.0, 0.7, 0.5, 0.9), (0.3, 0.93, 0.5, 0.93), (0.1, 0.96, 0.7, 0.93)], "overfitting"),
        ([(2.0, 0.3, 2.0, 0.3), (1.9, 0.35, 1.9, 0.35)], "underfitting"),
        (
            [
                (1.0, 0.7, 0.5, 0.9),
                (0.3, 0.95, 0.3, 0.94),
                (0.29, 0.95, 0.29, 0.95),
                (0.28, 0.95, 0.29, 0.95),
            ],
            "good",
        ),
    ],
)
def test_verdicts(epochs: list[tuple[float, ...]], verdict: str) -> None:
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    assert fit_verdict([dict(zip(names, e, strict=True)) for e in epochs], 3)["verdict"] == verdict


def test_update_ratios_are_those_of_the_step() -> None:
    """SGD at rate 0.1 without clipping: |change| / |weight| is 0.1 · |gradient| / |weight|."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    data = split_blobs()
    before = model.weight.detach().clone()
    settings = FitSettings(
        max_steps=1, batch_size="full", clip_norm=None, schedule=ScheduleSettings(name="constant"),
        optimizer=OptimizerSettings(name="sgd", lr=0.1, weight_decay=0.0),
    )  # fmt: skip
    history = fit(model, data, settings, seed=0, progress=silent, label="t")
    ratio = float((model.weight.detach() - before).norm() / before.norm())
    assert history.events["update_ratio"] == {"weight": pytest.approx(ratio, rel=1e-5)}
