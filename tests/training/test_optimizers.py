from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import nn

from hwopt.core.progress import silent
from hwopt.errors import ConfigError
from hwopt.plugins import resolve, table
from hwopt.training.build import Optimizers, build_optimizer, roles
from hwopt.training.choices import GroupSettings, OptimizerSettings, ScheduleSettings
from hwopt.training.loop import fit
from hwopt.training.muon import Muon
from hwopt.training.optimizers import Stepping
from hwopt.training.settings import FitSettings
from tests.training.nets import net, split_blobs

CORE = sorted(name for name in table("optimizer") if resolve("optimizer", name).extra is None)
EXTRA = sorted(set(table("optimizer")) - set(CORE))
HAS_EXTRA = importlib.util.find_spec("pytorch_optimizer") is not None
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="the extra optim (pytorch-optimizer) is not installed")


def settings_for(name: str, **more: Any) -> FitSettings:
    spec = resolve("optimizer", name)
    schedule = "constant" if spec.schedule_free or name == "lbfgs" else "one_cycle"
    batch: Any = "full" if name == "lbfgs" else 8
    return FitSettings(
        batch_size=batch,
        optimizer=OptimizerSettings(name=name),
        schedule=ScheduleSettings(name=schedule),
        **more,
    )


def test_the_list_is_complete() -> None:
    assert set(CORE) == {
        "sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "amsgrad", "adamw", "nadam",
        "nadamw", "radam", "adamax", "adafactor", "asgd", "lbfgs", "muon",
    }  # fmt: skip
    assert {"lion", "soap", "shampoo", "schedulefree_adamw", "prodigy", "sam"} <= set(EXTRA)


LONG = {"schedulefree_sgd", "schedulefree_radam"}  # of one family; schedulefree_adamw runs always


@pytest.mark.parametrize(
    "name",
    [
        *CORE,
        *(pytest.param(n, marks=[needs_extra, *([pytest.mark.slow] if n in LONG else [])]) for n in EXTRA),
    ],
)
def test_every_optimizer_learns(name: str) -> None:
    settings = settings_for(name, epochs=30)
    if name == "lbfgs":  # separable data has no minimum without a penalty, and L-BFGS goes to any length
        settings = settings.model_copy(update={"l2": 1e-2})
    if name == "dadapt_sgd":  # its own rate of 1 diverges on so few samples
        settings = settings.model_copy(update={"optimizer": OptimizerSettings(name=name, lr=0.1)})
    history = fit(net(), split_blobs(), settings, seed=0, progress=silent, label="t")
    least = 0.9 if name != "sophia_h" else 0.6  # made for large models: slow at this size
    assert float(str(history.epochs[-1]["validation_accuracy"])) >= least


@pytest.mark.parametrize("name", [n for n in CORE if n != "muon"])
def test_ref_parity(name: str) -> None:
    """Twenty steps equal those of the torch class with the options that the name stands for, within 1e-6."""
    spec = resolve("optimizer", name)
    library, _, kind = spec.reference.partition(":")
    assert library == "torch.optim"
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimizer(
        OptimizerSettings(name=name, lr=0.01), [{"params": list(ours.parameters()), "weight_decay": 0.1}]
    )
    decay = {} if name == "lbfgs" else {"weight_decay": 0.1}
    reference = getattr(torch.optim, kind)(theirs.parameters(), lr=0.01, **decay, **spec.fixed)
    for step in range(20):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, reference)):

            def closure(model: nn.Module = model, optimizer: Any = optimizer, x: torch.Tensor = x) -> Any:
                optimizer.zero_grad()
                loss = model(x).square().sum()
                loss.backward()
                return loss

            if spec.stepping is Stepping.CLOSURE:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)


def test_muon_is_torchs_on_matrices_and_adamw_elsewhere() -> None:
    matrix = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    twin, vector = nn.Parameter(matrix.detach().clone()), nn.Parameter(torch.ones(5))
    copy = nn.Parameter(vector.detach().clone())
    mine = Muon(
        [{"params": [matrix], "matrices": True}, {"params": [vector], "matrices": False}],
        lr=0.02, weight_decay=0.1, rest_lr=0.01, dtype="bfloat16",
    )  # fmt: skip
    theirs = torch.optim.Muon([twin], lr=0.02, weight_decay=0.1)
    rest = torch.optim.AdamW([copy], lr=0.01, weight_decay=0.1)
    for step in range(20):
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        matrix.grad, twin.grad = gradient.clone(), gradient.clone()
        vector.grad, copy.grad = gradient[0, 0] * torch.arange(5.0), gradient[0, 0] * torch.arange(5.0)
        for optimizer in (mine, theirs, rest):
            optimizer.step()
    torch.testing.assert_close(matrix, twin, atol=1e-6, rtol=0)
    torch.testing.assert_close(vector, copy, atol=1e-6, rtol=0)


def test_muon_flattens_kernels_and_leaves_the_ends_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(6, 3))
    optimizers = Optimizers(model, FitSettings(optimizer=OptimizerSettings(name="muon")))
    (member,) = optimizers.members
    shapes = [[tuple(p.shape) for p in g["params"]] for g in member.optimizer.param_groups if g["matrices"]]
    assert shapes == [[(6, 4, 3)]]


def test_gradient_descent_by_hand() -> None:
    """x² from 10 with rate 0.01: x = 10 · 0.98^10 after ten steps."""
    x = nn.Parameter(torch.tensor([10.0], dtype=torch.float64))
    optimizer = build_optimizer(
        OptimizerSettings(name="sgd", lr=0.01), [{"params": [x], "weight_decay": 0.0}]
    )
    for _ in range(10):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert float(x.detach()) == pytest.approx(10 * 0.98**10, abs=1e-9)


def test_lbfgs_solves_rosenbrock() -> None:
    x = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = build_optimizer(OptimizerSettings(name="lbfgs"), [{"params": [x]}])
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        loss.backward()
        return loss.detach()

    while calls < 100 and float(closure()) > 1e-8:
        optimizer.step(closure)  # type: ignore[arg-type]
    assert float(closure()) <= 1e-8
    assert calls <= 101


def test_adamw_shrinks_by_lr_times_decay_and_adam_does_not() -> None:
    shrunk = {}
    for name in ("adamw", "adam"):
        w = nn.Parameter(torch.ones(2, 2))
        optimizer = build_optimizer(
            OptimizerSettings(name=name, lr=0.1), [{"params": [w], "weight_decay": 0.5}]
        )
        w.grad = torch.zeros(2, 2)
        optimizer.step()
        shrunk[name] = float(w.detach()[0, 0])
    assert shrunk["adamw"] == pytest.approx(1 - 0.1 * 0.5)
    assert shrunk["adam"] != pytest.approx(1 - 0.1 * 0.5)


def test_amsgrad_never_forgets() -> None:
    w = nn.Parameter(torch.ones(1, 1))
    optimizer = build_optimizer(OptimizerSettings(name="amsgrad"), [{"params": [w], "weight_decay": 0.0}])
    seen = [0.0]
    for step in range(30):
        w.grad = torch.full((1, 1), 1.0 / (1 + step))
        optimizer.step()
        seen.append(float(optimizer.state[w]["max_exp_avg_sq"]))
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", [n for n in CORE if n not in {"lbfgs", "muon"}])
def test_slope_of_a_line(name: str) -> None:
    """y = 3x + noise over 100 points: slope 3 ± 0.15 with every optimizer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 1, generator=generator)
    y = 3 * x + 0.1 * torch.randn(100, 1, generator=generator)
    line = nn.Linear(1, 1)
    nn.init.zeros_(line.weight)
    groups = [{"params": list(line.parameters()), "weight_decay": 0.0}]
    rate = 0.5 if name in {"adagrad", "adafactor", "adadelta"} else 0.05
    optimizer = build_optimizer(OptimizerSettings(name=name, lr=rate if name != "adadelta" else 5.0), groups)
    for _ in range(400):
        optimizer.zero_grad()
        (line(x) - y).square().mean().backward()
        optimizer.step()
    assert float(line.weight.detach()) == pytest.approx(3, abs=0.15)


def test_full_batch_is_the_one_batch_loader() -> None:
    """``batch_size: full`` follows the same path as a batch of that size, bit for bit."""
    from tests.training.nets import equal

    models = [net(), net()]
    for model, size in zip(models, ("full", 192), strict=True):
        fit(model, split_blobs(), FitSettings(batch_size=size, epochs=5), seed=0, progress=silent, label="t")
    assert equal(*models)


def test_several_optimizers_in_one_run() -> None:
    model = net()
    settings = FitSettings(
        groups=(
            GroupSettings(layers="0", optimizer=OptimizerSettings(name="momentum", lr=0.01)),
            GroupSettings(layers="4", lr_scale=0.5, weight_decay=0.3),
            GroupSettings(layers="1", frozen=True),
        ),
        epochs=10,
        batch_size=8,
    )
    optimizers = Optimizers(model, settings)
    assert [m.name for m in optimizers.members] == ["adamw", "momentum"]
    assert {g["weight_decay"] for g in optimizers.members[0].optimizer.param_groups} == {0.3, 0.0}
    assert optimizers.members[0].rates == [5e-4, 5e-4]
    assert optimizers.frozen == ["1.weight", "1.bias"]
    before = model[1].weight.detach().clone()  # type: ignore[index, operator]
    running = model[1].running_mean.clone()  # type: ignore[index, operator]
    history = fit(model, split_blobs(), settings, seed=0, progress=silent, label="t")
    assert torch.equal(model[1].weight, before)  # type: ignore[index]
    assert torch.equal(model[1].running_mean, running)  # type: ignore[index]
    assert float(str(history.epochs[-1]["validation_accuracy"])) >= 0.9


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        Optimizers(net(), FitSettings(groups=(GroupSettings(layers="features", frozen=True),)))


def test_roles_are_told_by_module_type() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm([3, 4]), nn.Linear(4, 4), nn.Linear(4, 2))
    found = roles(model)
    assert [name for name, role in found.items() if role.matrix] == ["2.weight", "3.weight"]
    assert [name for name, role in found.items() if role.hidden] == ["2.weight"]


class Odd(torch.optim.SGD):
    """For the pass-through: a class of the user's, with a rule of its own."""

    def step(self, closure: Any = None) -> Any:
        if self.param_groups[0]["lr"] > 1:
            raise RuntimeError("much too fast")
        return super().step(closure)


def test_any_class_serves() -> None:
    optimizer = OptimizerSettings(name=f"{__name__}:Odd", lr=0.1, momentum=0.5)  # type: ignore[call-arg]
    history = fit(
        net(), split_blobs(), FitSettings(optimizer=optimizer, epochs=10, batch_size=8), seed=0,
        progress=silent, label="t",
    )  # fmt: skip
    assert float(str(history.epochs[-1]["validation_accuracy"])) >= 0.9


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        ({"name": f"{__name__}:Odd", "lr": 0.1, "momentun": 0.5}, "momentun"),
        ({"name": f"{__name__}:Odd", "lr": 2.0}, "much too fast"),
        ({"name": f"{__name__}:Even", "lr": 0.1}, "has no 'Even'"),
        ({"name": "no_such_module:Adam"}, "no module named"),
    ],
)
def test_classes_that_do_not_fit_are_told_before_the_run(optimizer: dict[str, Any], text: str) -> None:
    given = OptimizerSettings.model_validate(optimizer)
    with pytest.raises(ConfigError, match=text):
        fit(net(), split_blobs(), FitSettings(optimizer=given), seed=0, progress=silent, label="t")


@pytest.mark.slow
def test_momentum_on_a_narrow_valley() -> None:
    """Condition number 100: momentum takes at most a third of the steps, each at its best rate."""

    def steps_to(name: str, rate: float) -> float:
        x = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        optimizer = build_optimizer(
            OptimizerSettings(name=name, lr=rate), [{"params": [x], "weight_decay": 0.0}]
        )
        scale = torch.tensor([1.0, 100.0], dtype=torch.float64)
        for step in range(2000):
            optimizer.zero_grad()
            loss = (scale * x**2).sum() / 2
            if float(loss.detach()) < 1e-6:
                return step
            loss.backward()
            optimizer.step()
        return math.inf

    rates = [10 ** -(1 + i / 8) for i in range(20)]
    best = {n: min(steps_to(n, r) for r in rates) for n in ("sgd", "momentum", "nesterov")}
    assert best["momentum"] * 3 <= best["sgd"]
    assert best["nesterov"] <= 1.1 * best["momentum"]


def test_adagrad_moves_rare_features() -> None:
    """A feature that comes up once in fifty steps moves at least five times as far as under SGD."""
    moved = {}
    for name, rate in (("adagrad", 0.1), ("sgd", 0.1)):
        w = nn.Parameter(torch.zeros(2, 1))
        optimizer = build_optimizer(
            OptimizerSettings(name=name, lr=rate), [{"params": [w], "weight_decay": 0.0}]
        )
        for step in range(200):
            w.grad = torch.tensor([[0.1], [0.1 if step % 50 == 0 else 0.0]])
            optimizer.step()
        moved[name] = float(w.detach()[1].abs())
    assert moved["adagrad"] >= 5 * moved["sgd"]
