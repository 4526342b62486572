"""Regularization, normalization, initialization, precision: each does what its name says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwopt.core.progress import silent
from hwopt.data.digits import DigitsOptions, load
from hwopt.errors import ConfigError, StageFailedError
from hwopt.models import cnn, mlp
from hwopt.models.zoo import CnnOptions, MlpOptions
from hwopt.training.average import Average
from hwopt.training.batches import Split, augmented, mixed, split
from hwopt.training.choices import GroupSettings, OptimizerSettings, ScheduleSettings
from hwopt.training.evaluation import logits_of
from hwopt.training.initialize import initialize
from hwopt.training.loop import Training, fit
from hwopt.training.settings import Augmentation, Averaging, FitSettings
from tests.training.nets import net, split_blobs

DIGITS = load(DigitsOptions())


def trained(model: nn.Module, data: Split | None = None, **more: Any) -> Any:
    given: dict[str, Any] = {"epochs": 20, "batch_size": 16, **more}
    return fit(model, data or split_blobs(), FitSettings(**given), seed=0, progress=silent, label="t")


def test_l1_makes_weights_small() -> None:
    """At least twice the share of |w| < 1e-3, at no more than a point of accuracy."""
    data = split(DIGITS, 0.2, 0)
    shares, accuracies = [], []
    for l1 in (0.0, 3e-4):
        torch.manual_seed(0)
        model = mlp.build((1, 8, 8), 10, MlpOptions(hidden=(64,)))
        history = trained(model, data, l1=l1, optimizer=OptimizerSettings(weight_decay=0.0))
        weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() > 1])
        shares.append(float((weights.abs() < 1e-3).float().mean()))
        accuracies.append(float(str(history.epochs[-1]["validation_accuracy"])))
    assert shares[1] >= 2 * shares[0]
    assert accuracies[1] >= accuracies[0] - 0.01


@pytest.mark.parametrize("accumulate", [4, 5])
def test_ragged_batches_have_no_part_of_one(accumulate: int) -> None:
    """13 samples in four parts, 12 in five: batch norm gets two at least, and the batch is whole."""
    model = net()
    history = trained(model, split_blobs(65, 0.2), batch_size=13, accumulate=accumulate, epochs=3)
    assert history.steps == 3 * 4


def test_what_is_not_to_be_trained_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    weight = model[0].weight.detach().clone()
    mean = model[1].running_mean.clone()  # type: ignore[union-attr, operator]
    trained(model, groups=(GroupSettings(layers=r"[01]\.", frozen=True),))
    assert torch.equal(model[0].weight, weight)
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert torch.equal(model[1].running_mean, mean)  # type: ignore[arg-type]


def test_gradients_that_are_never_finite_end_a_training_in_fp16() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(x)
            if found.requires_grad:
                found.register_hook(lambda g: g * float("nan"))
            return found

    with pytest.raises(StageFailedError, match="gradients became infinite"):
        trained(Broken(), precision="fp16")


def test_line_search_on_images() -> None:
    data = split(DIGITS, 0.5, 0)
    torch.manual_seed(0)
    model = cnn.build((1, 8, 8), 10, CnnOptions(width=4, dropout=0.0))
    settings = {"optimizer": OptimizerSettings(name="lbfgs"), "schedule": ScheduleSettings(name="constant")}
    history = trained(model, data, batch_size="full", epochs=10, **settings)
    assert float(str(history.epochs[-1]["validation_accuracy"])) > 0.7


def test_l2_is_coupled_decay() -> None:
    """With SGD, l2 and weight_decay are one and the same."""
    models = []
    for more in ({"l2": 0.1, "decay": 0.0}, {"l2": 0.0, "decay": 0.1}):
        model = nn.Linear(4, 3)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = OptimizerSettings(name="sgd", lr=0.1, weight_decay=more["decay"])
        trained(model, l2=more["l2"], optimizer=optimizer, clip_norm=None, epochs=2)
        models.append(model)
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_dropout_is_off_at_evaluation() -> None:
    model = net()
    x = split_blobs().x
    assert torch.equal(logits_of(model, x), logits_of(model, x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"batch_size": 1}, "batches of 1 sample and batch norm in 1"),
        ({"batch_size": 4, "accumulate": 4}, "batches of 1 sample and batch norm"),
        ({"augment": Augmentation(rotate=5)}, "augment changes images"),
    ],
)
def test_what_does_not_fit_the_network_is_told_first(more: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        trained(net(), **more)


def test_a_batch_of_one_without_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    history = trained(model, batch_size=1, epochs=2)
    assert history.steps == 2 * 192


def test_layer_norm_does_not_look_at_the_batch() -> None:
    torch.manual_seed(0)
    model = cnn.build((1, 8, 8), 10, CnnOptions(width=4, norm="layer", dropout=0.0)).train()
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "tanh", "sigmoid"])
def test_activations_can_be_chosen(name: Any) -> None:
    model = mlp.build((4,), 3, MlpOptions(hidden=(16,), activation=name))
    history = trained(model, epochs=20, optimizer=OptimizerSettings(lr=0.01))
    assert float(str(history.epochs[-1]["validation_accuracy"])) > 0.8


def test_clipping_by_norm_and_by_value() -> None:
    class Look:
        norm = value = 0.0

        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def epoch(self, epoch: int) -> None: ...
        def penalty(self, share: float) -> None: ...
        def stepped(self) -> None:
            gradients = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
            self.norm = max(self.norm, float(gradients.norm()))
            self.value = max(self.value, float(gradients.abs().max()))

    model = net()
    look = Look(model)
    settings = FitSettings(epochs=3, batch_size=16, clip_norm=0.05)
    history = fit(model, split_blobs(), settings, seed=0, progress=silent, label="t", hooks=[look])
    assert look.norm <= 0.05 + 1e-6
    assert float(str(history.events["clipped_share"])) > 0.9
    look = Look(model)
    settings = FitSettings(epochs=3, batch_size=16, clip_norm=None, clip_value=0.01)
    fit(model, split_blobs(), settings, seed=0, progress=silent, label="t", hooks=[look])
    assert look.value <= 0.01


def test_weights_stay_within_their_bound() -> None:
    model = net()
    trained(model, max_weight=0.1)
    assert max(float(p.detach().abs().max()) for p in model.parameters() if p.dim() > 1) <= 0.1 + 1e-8


@pytest.mark.parametrize(
    ("rule", "activation", "gain"),
    [("xavier", nn.Tanh, 1.0), ("he", nn.ReLU, 1.0), ("orthogonal", nn.ReLU, 1.0)],
)
def test_variance_is_kept_through_twenty_layers(rule: Any, activation: Any, gain: float) -> None:
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Linear(256, 256), activation()]
    model = nn.Sequential(*layers)
    assert initialize(model, rule, 0) == 20
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0)) * 0.3
    last = None
    for layer in model:
        before = float(x.square().mean())
        x = layer(x).detach()
        if isinstance(layer, nn.Linear):
            last = float(x.square().mean())
            # He keeps the variance over layer and ReLU together, Xavier over the layer.
            assert 0.5 <= last / before / (2.0 if rule != "xavier" else 1.0) <= 2
    assert last is not None


def test_a_deep_network_trains_with_he_and_stalls_without() -> None:
    data = split(DIGITS, 0.2, 0)
    reached = []
    for he in (True, False):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU()]
        for _ in range(18):
            layers += [nn.Linear(64, 64), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(64, 10))
        if he:
            initialize(model, "he", 0)
        settings = {"optimizer": OptimizerSettings(name="momentum", lr=0.03), "epochs": 20, "batch_size": 32}
        history = trained(model, data, **settings)
        reached.append(float(str(history.epochs[-1]["validation_accuracy"])))
    assert reached[0] > 0.85
    assert reached[1] < 0.3


def images() -> torch.Tensor:
    x = torch.zeros(3, 1, 9, 9)
    x[:, 0, 4, 6] = 1.0
    return x


def test_augmentation_is_seeded_and_moves_the_image() -> None:
    how = Augmentation(rotate=30, shift=0.2, zoom=0.2, flip="both", crop=2)
    made = [augmented(images(), how, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == (3, 1, 9, 9)
    assert not torch.equal(made[0][0], made[0][1])


def test_single_augmentations_do_what_they_say() -> None:
    x = images()
    same = augmented(x, Augmentation(), torch.Generator().manual_seed(0))
    assert torch.equal(same, x)
    flips = augmented(
        x.repeat(50, 1, 1, 1), Augmentation(flip="horizontal"), torch.Generator().manual_seed(0)
    )
    columns = {int(i) for i in flips[:, 0, 4].argmax(1)}
    assert columns == {2, 6}
    crops = augmented(x.repeat(50, 1, 1, 1), Augmentation(crop=1), torch.Generator().manual_seed(0))
    places = {divmod(int(i), 9) for i in crops[:, 0].flatten(1).argmax(1)}
    assert places == {(r, c) for r in (3, 4, 5) for c in (5, 6, 7)}
    turned = augmented(x.repeat(200, 1, 1, 1), Augmentation(rotate=90), torch.Generator().manual_seed(0))
    rows, cols = zip(*(divmod(int(i), 9) for i in turned[:, 0].flatten(1).argmax(1)), strict=True)
    radius = [math.hypot(r - 4, c - 4) for r, c in zip(rows, cols, strict=True)]
    assert min(radius) >= 1
    assert max(radius) <= 3
    assert (min(rows), max(rows)) == (2, 6)


def test_mixup_mixes_with_partners() -> None:
    x = torch.arange(6.0)[:, None]
    mixture, partner, share = mixed(x, 1.0, 3)
    torch.testing.assert_close(mixture, share * x + (1 - share) * x[partner])
    assert 0 < share < 1
    again = mixed(x, 1.0, 3)
    assert torch.equal(mixture, again[0])


def test_average_is_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Average(model, Averaging(decay=0.5), 10)
    swa = Average(model, Averaging(kind="swa", start=0.5), 4)
    expected, seen = 0.0, []
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(float(step + 1))
        ema.update(model, step)
        swa.update(model, step)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step + 1)
        seen.append(step + 1.0)
    with ema.in_place(model):
        assert float(model.weight.detach()) == pytest.approx(expected)
    assert float(model.weight.detach()) == 4.0
    swa.settle(model)
    assert float(model.weight.detach()) == pytest.approx((3 + 4) / 2)


def test_the_average_ships_with_statistics_of_its_own() -> None:
    model = net()
    history = trained(model, average=Averaging(decay=0.9), epochs=20)
    assert float(str(history.epochs[-1]["validation_accuracy"])) > 0.9
    x = split_blobs().x
    hidden = model[0](x)  # type: ignore[index, operator]
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0).detach(), atol=0.1, rtol=0.1)  # type: ignore[index]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_precisions_learn_and_ship_fp32(precision: Any) -> None:
    model = net()
    history = trained(model, precision=precision)
    assert float(str(history.epochs[-1]["validation_accuracy"])) > 0.9
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_accumulation_is_the_whole_batch() -> None:
    """Without batch norm, four parts give the gradient of one."""
    models = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        trained(
            model, batch_size=32, accumulate=accumulate, epochs=5, optimizer=OptimizerSettings(name="sgd")
        )
        models.append(model)
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"precision": "fp16", "loss_scaling": False}, "fp16 without loss_scaling"),
        ({"optimizer": {"name": "adamq"}}, "did you mean 'adam'"),
        ({"optimizer": {"name": "adamw", "beta": 0.9}}, "takes no option 'beta'"),
        ({"optimizer": {"name": "lbfgs", "weight_decay": 0.1}}, "knows no weight_decay"),
        (
            {"optimizer": {"name": "lbfgs"}, "groups": [{"layers": "a", "frozen": True}]},
            "neither parameter groups",
        ),
        ({"optimizer": {"name": "schedulefree_adamw"}}, "brings its own schedule"),
        ({"optimizer": {"name": "adamw", "base": "sgd"}}, "wraps no other"),
        ({"groups": [{"layers": "("}]}, "no regular expression"),
        ({"groups": [{"layers": "a", "frozen": True, "lr_scale": 2.0}]}, "a frozen group is not trained"),
        ({"schedule": {"name": "plateau"}, "validation_share": 0.0}, "watches the validation loss"),
        ({"average": {"kind": "ema", "start": 0.5}}, "does not serve ema"),
        ({"accumulate": 256}, "has no 256 parts"),
        ({"precision": "fp16", "optimizer": {"name": "adahessian"}}, "without second derivatives"),
        ({"optimizer": {"name": "lbfgs"}, "clip_norm": 1.0}, "gradients that are not clipped"),
        (
            {"optimizer": {"name": "schedulefree_sgd"}, "schedule": {"name": "constant"}, "max_weight": 0.1},
            "itself",
        ),
        ({"average": {"kind": "swa"}, "early_stopping": {"patience": 2}}, "before swa has begun"),
        ({"optimizer": {"lr": "auto"}}, "serves the optimizer of the section train only"),
        (
            {"groups": [{"layers": "a", "optimizer": {"lr": "auto"}}]},
            "serves the optimizer of the section train",
        ),
    ],
)
def test_bad_settings(given: dict[str, Any], text: str) -> None:
    from hwopt.core.canonical import canonical_json

    with pytest.raises(ValueError, match=r".") as caught:
        FitSettings.model_validate_json(canonical_json(given))
    details = caught.value.errors()  # type: ignore[attr-defined]
    assert any(text in d["msg"] + str(d.get("ctx", {}).get("fix")) for d in details)


def test_non_finite_weights_are_refused() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"0\.weight hold NaN"):
        trained(model)


def test_the_test_split_is_never_seen() -> None:
    data = split(DIGITS, 0.3, 5)
    seen = {row.tobytes() for row in torch.cat([data.x, data.x_validation]).numpy()}
    train = {row.tobytes() for row in DIGITS.x_train}
    assert seen == train


def test_the_last_step_has_the_floor() -> None:
    model = net()
    settings = FitSettings(
        epochs=2, batch_size=16, schedule=ScheduleSettings(name="cosine", floor=0.25, warmup=3)
    )
    training = Training(model, split_blobs(), settings, seed=0, progress=silent, label="t")
    rates = []
    for _ in training.steps():
        rates.append(training.optimizers.members[0].optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3], abs=1e-15)
    assert rates[-1] == pytest.approx(0.25e-3, abs=1e-15)
    assert np.argmax(rates) in {2, 3}
