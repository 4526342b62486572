"""Super-nets: a narrow network is the whole one with channels silenced, tables rank, evolution finds, refusals."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwopt.core.hardware import Pruning
from hwopt.errors import StageFailedError
from hwopt.models.ensemble import Ensemble
from hwopt.slimming import Slimmer
from hwopt.stages.elastic.evolve import Predictor, evolve
from hwopt.stages.elastic.latency_table import LatencyTable, agreement, layers
from hwopt.stages.elastic.run import _converged
from hwopt.stages.elastic.spec import ElasticConfig
from hwopt.stages.elastic.supernet import Sandwich, Shape, SuperNet, blocks_of
from hwopt.training.batches import Split
from hwopt.training.loop import fit
from hwopt.training.settings import FitSettings
from tests.conftest import Command, Outcome, hwopt

RULES = Pruning(channel_multiple=4, least_channels=4)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 16, 3, padding=1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(
        *stem, nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def samples(n: int = 256) -> tuple[Tensor, Tensor]:
    """Which quarter of the picture is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, n)
    x = rng.random((n, 1, 8, 8), np.float32) * 0.5
    for i, label in enumerate(y):
        row, column = divmod(int(label), 2)
        x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.4
    return torch.from_numpy(x), torch.from_numpy(y)


def supernet(module: nn.Module, widths: tuple[float, ...] = (1.0, 0.5, 0.25)) -> SuperNet:
    x, y = samples()
    slimmer = Slimmer(module=module, sample_shape=(1, 8, 8), rules=RULES, samples=x, labels=y)
    return SuperNet(module, slimmer.structure, slimmer.scores("l1"), widths, RULES)


def test_narrow_networks_are_parts_of_the_whole_one() -> None:
    net = supernet(network(norm=False))
    assert net.sizes == (3, 2)
    x, _ = samples(8)
    whole = net.module.eval()
    assert torch.allclose(net.answers(net.whole, x), whole(x), atol=1e-6)
    shape = Shape((1, 1))
    keep = net.keep(shape)
    silenced = copy.deepcopy(whole)
    state = silenced.state_dict()
    for (name, dim), ids in net.structure.owners.items():
        gone = torch.from_numpy(np.flatnonzero((ids >= 0) & ~keep[np.maximum(ids, 0)]))
        state[name].index_fill_(dim, gone, 0.0)
    assert torch.allclose(net.answers(shape, x), silenced(x), atol=1e-5)


def test_gradients_reach_the_whole_network_where_the_narrow_one_is() -> None:
    net = supernet(network(norm=False))
    x, _ = samples(8)
    net.answers(net.least, x).sum().backward()
    weight: Any = net.module[0].weight  # type: ignore[index]
    rows = weight.grad.abs().flatten(1).sum(1) > 0
    assert 0 < int(rows.sum()) <= 4
    wider = net.keep(Shape((1, 1)))
    assert (wider | ~net.keep(net.least)).all(), "narrower networks use a part of what wider ones use"


class Trip:
    """A hook that breaks the training off after some steps."""

    def __init__(self, after: int | None) -> None:
        self.left = after

    def epoch(self, epoch: int) -> None: ...

    def penalty(self, share: float) -> None:
        return None

    def stepped(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def test_all_learn_together_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwopt.training import loop

    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    x, y = samples(512)
    data = Split(x=x, y=y, x_validation=x[:0], y_validation=y[:0])
    settings = FitSettings(epochs=40, batch_size=64, watch=False)

    said: list[str] = []

    def trained(steps: int, keep: Path | None = None, trip: int | None = None) -> SuperNet:
        net = supernet(network())
        hook = Sandwich(net, 1, 0)
        once = settings.model_copy(update={"max_steps": steps})
        both = (hook, Trip(trip))
        fit(net.module, data, once, seed=0, progress=said.append, label="t", hooks=both, keep=keep)
        hook.close()
        return net

    net = trained(240)
    for widths in itertools.product(*(range(n) for n in net.sizes)):
        module = net.alone(Shape(widths), x)
        assert float((module(x).argmax(1) == y).float().mean()) > 0.9, widths
    with pytest.raises(KeyboardInterrupt):
        trained(240, keep=tmp_path, trip=100)
    assert not any("goes on after step" in text for text in said)
    again = trained(240, keep=tmp_path)
    assert any("goes on after step" in text for text in said)
    for a, b in zip(net.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_blocks_that_may_be_left_out() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Residual(8),
        Residual(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    x, y = samples()
    slimmer = Slimmer(module=module, sample_shape=(1, 8, 8), rules=RULES, samples=x, labels=y)
    blocks = blocks_of(module, (1, 8, 8), slimmer.structure, x, y)
    assert sorted(blocks) == ["1", "2"]
    net = SuperNet(module, slimmer.structure, slimmer.scores("l1"), (1.0, 0.5), RULES, blocks)
    inner = [g for g in net.sizes if g > 1]
    assert len(inner) >= 2, "the widths within the blocks and the one of their sum"
    every = net.every()
    assert len(every) == net.count == len(set(every))
    assert net.least in every
    rng = np.random.default_rng(0)
    assert all(net.random(rng) in every for _ in range(50))
    shapes = {tuple((n, tuple(p.shape)) for n, p in net.alone(s, x).named_parameters()) for s in every}
    assert len(shapes) == net.count, "two shapes are one network"
    least = net.alone(net.least, x)
    assert sum(isinstance(part, Residual) for part in least) == 0  # type: ignore[union-attr,attr-defined]
    assert least(x[:2]).shape == (2, 4)


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_a_plain_layer_between_two_groups_is_no_block(kind: str) -> None:
    """It keeps the shape of what it takes only as long as both groups are equally wide."""
    torch.manual_seed(0)
    body: list[nn.Module]
    if kind == "linear":
        body = [nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)]
        body += [nn.BatchNorm1d(32), nn.Linear(32, 4)]
    else:
        body = [nn.Conv2d(1, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))]
        body += [Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    module = nn.Sequential(*body)
    x, y = samples()
    slimmer = Slimmer(module=module, sample_shape=(1, 8, 8), rules=RULES, samples=x, labels=y)
    blocks = blocks_of(module, (1, 8, 8), slimmer.structure, x, y)
    assert blocks == ([] if kind == "linear" else ["4"])
    net = SuperNet(module, slimmer.structure, slimmer.scores("l1"), (1.0, 0.5), RULES, blocks)
    for shape in net.every():
        assert net.alone(shape, x)(x[:2]).shape == (2, 4)


def test_layers_that_are_alike_are_each_counted() -> None:
    from hwopt.latency.costs import exported

    class Fixed(LatencyTable):
        def _time(self, models: Any) -> None:
            self.times.update(dict.fromkeys(models, 3.0))

    class Bench:
        sample = np.zeros((1, 1, 8, 8), np.float32)

    def model(blocks: int) -> Any:
        body = [nn.Conv2d(1, 8, 3, padding=1), *(Residual(8) for _ in range(blocks)), nn.Flatten()]
        return exported(nn.Sequential(*body).eval(), (1, 8, 8))

    table = Fixed(bench=Bench())  # type: ignore[arg-type]
    one, two, three = table.price([model(1), model(2), model(3)])
    assert two - one == pytest.approx(three - two)
    assert two - one == pytest.approx(2.0 * len(layers(model(2), 1)) - 2.0 * len(layers(model(1), 1)))


def test_a_table_that_hopes_too_much_is_not_believed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five best just miss: the next ones that are timed would keep the goal by as much."""
    from hwopt.core.measurement import Interval
    from hwopt.stages.elastic import run

    timed: list[float] = []

    class Slow:
        def confirm(self, first: Any, model: float) -> Interval:
            timed.append(model)
            return Interval(1.05 * model, 1.05 * model, 1.05 * model)

    class Known(run._Cost):
        def __init__(self) -> None:
            self.unit, self._bench, self._origin, self._net = "latency", Slow(), 1.0, None  # type: ignore[assignment]

        def __call__(self, shapes: Any) -> list[float]:
            return list(shapes)

        def model(self, shape: Any) -> Any:
            return shape

    best, reached = Known().confirmed([0.5, 0.499, 0.498, 0.497, 0.496, 0.495, 0.47, 0.3], 0.5)  # type: ignore[list-item]
    assert (best, reached.met, timed) == (0.47, True, [0.5, 0.47])
    timed.clear()
    best, reached = Known().confirmed([0.5, 0.499], 0.5)  # type: ignore[list-item]
    assert (best, reached.met, timed) == (0.5, False, [0.5])


def test_weights_that_lie_on_another_device_are_narrowed_there() -> None:
    """As in a training on a GPU; none is needed to see which device a result would have."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    net = supernet(network())
    net.narrow(net.least)
    shapes = {name: p.shape for name, p in net.module.named_parameters()}

    class There:
        @staticmethod
        def named_parameters() -> Any:
            return [(name, torch.empty(shape, device="cuda")) for name, shape in shapes.items()]

    net.module = There()  # type: ignore[assignment]
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = net.weights(net.least)
    assert {value.device.type for value in found.values()} == {"cuda"}
    assert found["0.weight"].shape[0] < shapes["0.weight"][0]


def test_evolution_finds_the_best_of_a_known_landscape() -> None:
    net = supernet(network(), (1.0, 0.75, 0.5, 0.25))
    shapes = [Shape(w) for w in itertools.product(*(range(n) for n in net.sizes))]

    def quality(shape: Shape) -> float:
        return 1.0 - 0.02 * shape.widths[0] - 0.1 * shape.widths[1]

    def cost(some: Any) -> list[float]:
        return [1.0 - 0.2 * s.widths[0] - 0.1 * s.widths[1] for s in some]

    predict = Predictor.fit(net, shapes, [quality(s) for s in shapes])
    assert predict(shapes[-1]) == pytest.approx(quality(shapes[-1]), abs=0.01)
    found = evolve(net, predict, cost, 0.65, population=16, generations=5, seed=0)
    best = max((s for s in shapes if cost([s])[0] <= 0.65), key=quality)
    assert found[0][0] == best
    assert all(share <= 0.65 for _, share in found)


def test_layers_of_a_model_are_keyed_by_what_they_compute() -> None:
    from hwopt.latency.costs import exported

    model = exported(network().eval(), (1, 8, 8))
    found = layers(model, 1)
    assert len(found) == 3  # two convolutions with what is fused into them, and the matrix
    assert len({key for _, key, _ in found}) == len({name for name, _, _ in found}) == 3
    assert [key for _, key, _ in layers(model, 1)] == [key for _, key, _ in found]
    assert [key for _, key, _ in layers(model, 2)] != [key for _, key, _ in found]


def test_ranks() -> None:
    assert agreement([4.0, 3.0, 2.0, 1.0], [8.0, 6.0, 4.0, 2.0]) == (pytest.approx(1.0), pytest.approx(0.0))
    tau, error = agreement([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0])
    assert tau == pytest.approx(-1.0)
    assert error > 0.5
    assert agreement([9.0, 1.0, 2.0, 3.0], [9.0, 3.0, 2.0, 1.0])[0] == pytest.approx(-1.0), (
        "the whole one is free"
    )


def test_a_network_that_has_not_converged_is_refused() -> None:
    x, y = samples()
    with pytest.raises(StageFailedError, match="has not converged"):
        _converged(network(), Split(x=x, y=y, x_validation=x, y_validation=y), ElasticConfig(macs=0.5))


PROFILE = """\
name: small
threads: 1
data: {name: digits}
model: {name: mlp, hidden: [32, 32], norm: none}
train: {epochs: 8, batch_size: 64, optimizer: {lr: 1.0e-2}}
benchmark: {budget_seconds: 0.2, processes: 1}
candidates:
  float: []
  slim:
    - elastic: {macs: 0.6, train: {epochs: 2}, scored: 6, population: 8, generations: 2, finalists: 3, quantized: true}
  best: [{ensemble: {members: 2}}]
  both: [{ensemble: {members: 2, take: average}}]
targets: [host-cpu]
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "p.yaml").write_text(PROFILE)
    return hwopt("pipeline", "run", "p.yaml", "--json", cwd=folder)


def test_in_a_pipeline(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err
    rows = {r["candidate"]: r for r in outcome.json["results"]}
    assert rows["slim"]["macs"] <= 0.6 * rows["float"]["macs"]
    assert rows["slim"]["accuracy"] > 0.8
    facts = rows["slim"]["details"]["elastic"]
    assert facts["unit"] == "macs"
    assert facts["winner"]["cost"] <= 0.6
    costs = [row["cost"] for row in facts["front"]]
    assert costs == sorted(costs)


def test_several_trainings(outcome: Outcome) -> None:
    rows = {r["candidate"]: r for r in outcome.json["results"]}
    facts = rows["both"]["details"]["ensemble"]
    assert len(facts["members"]) == 2
    trained = [s["outputs"]["checkpoint"]["digest"] for s in outcome.json["steps"] if s["stage"] == "train"]
    assert len(set(trained)) == 2, "both members are one training"
    assert rows["both"]["parameters"] == 2 * rows["float"]["parameters"]
    assert rows["best"]["parameters"] == rows["float"]["parameters"]
    assert rows["best"]["details"]["ensemble"]["chosen"] == facts["members"].index(max(facts["members"]))
    labels = [s["label"] for s in outcome.json["steps"] if s["stage"] == "train"]
    assert labels == ["train the float model", "train the float model, restart 1"]


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    one, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    x, _ = samples(4)
    both = Ensemble([one.eval(), other.eval()])
    assert torch.allclose(both(x), (one(x) + other(x)) / 2)


@pytest.mark.parametrize(
    ("chain", "code", "says"),
    [
        ("[{elastic: {latency: 0.5, macs: 0.5}}]", 2, "exactly one of latency and macs"),
        ("[{elastic: {macs: 0.5, widths: [0.5, 1.0]}}]", 2, "shares from 1.0 down"),
        ("[{elastic: {macs: 0.5, widths: [1.0]}}]", 2, "one network only"),
        ("[{prune: {ratio: 0.5}}, {ensemble: {members: 2}}]", 2, "put it first in the chain"),
        ("[{ensemble: {members: 2, validation_share: 0.3}}]", 2, "the same validation_share"),
        ("[{elastic: {macs: 0.5, train: {precision: fp64}}}]", 2, "fp64"),
        ("[{ensemble: {members: 1}}]", 2, "greater than or equal to 2"),
        ("[{elastic: {macs: 0.5, widths: []}}]", 2, "at least 1 item"),
        ("[{elastic: {macs: 0.5, train: {validation_share: 0.2}}}]", 2, "of which 0.1 were held back before"),
        (
            "[{finetune: {validation_share: 0.0}}, {elastic: {macs: 0.5}}]",
            2,
            "of which 0 were held back before",
        ),
        (
            "[{prune: {ratio: 0.2, schedule: iterative, tune: {validation_share: 0.0}}}, {auto: {latency: 0.5}}]",
            2,
            "of which 0 were held back before",
        ),
        ("[{auto: {latency: 0.5, tune: {validation_share: 0.2}}}]", 2, "of which 0.1 were held back before"),
    ],
)
def test_bad_settings(chain: str, code: int, says: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE.partition("  slim:")[0] + f"  x: {chain}\ntargets: [host-cpu]\n")
    found = command("pipeline", "plan", "p.yaml")
    assert (found.code, says in found.err) == (code, True), found.err


def test_the_sum_of_layers_is_corrected_by_whole_networks() -> None:

    class Known(LatencyTable):
        """Layers whose times are known, of networks that take less than their sum."""

        def _rows(self, models: Any) -> list[list[tuple[str, float]]]:
            return [list(row.items()) for row in models]

    rng = np.random.default_rng(0)
    rows = [{"a": float(rng.uniform(1, 9)), "b": float(rng.uniform(1, 9))} for _ in range(30)]
    real = [2.0 + 0.5 * row["a"] + 0.1 * row["b"] for row in rows]
    table = Known(bench=None)  # type: ignore[arg-type]
    before = agreement(table.price(rows), real)[0]  # type: ignore[arg-type]
    table.correct(rows[:15], real[:15])  # type: ignore[arg-type]
    after = agreement(table.price(rows[15:]), real[15:])[0]  # type: ignore[arg-type]
    assert before < 0.85 < 0.95 < after


def test_a_table_that_ranks_badly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwopt.layer_table import layers_of
    from hwopt.stages.elastic import run

    class Clock:
        """Whole networks take as long as they have multiply-accumulates."""

        def ratios(self, first: Any, others: Any) -> list[float]:
            return [macs(model) / macs(first) for model in others]

    def macs(model: Any) -> float:
        return float(sum(layer.macs for layer in layers_of(model)))

    class Table:
        sign = 1.0
        times = ()

        def __init__(self, bench: Any) -> None: ...

        def correct(self, models: Any, measured: Any) -> None: ...

        def price(self, models: Any) -> list[float]:
            return [macs(model) ** self.sign for model in models]

    class Context:
        seed, hardware = 0, None

        @staticmethod
        def progress(text: str) -> None: ...

    monkeypatch.setattr(run, "bench_of", lambda ctx, timing: Clock())
    monkeypatch.setattr(run, "LatencyTable", Table)
    net = supernet(network(), (1.0, 0.75, 0.5, 0.25))

    def trust() -> Any:
        cost = run._Cost(Context(), ElasticConfig(latency=0.5), net, (1, 8, 8), None)  # type: ignore[arg-type]
        return cost.held_against_measurement()

    found = trust()
    assert found["tau"] == pytest.approx(1.0)
    assert found["error"] == pytest.approx(0.0)
    Table.sign = -1.0
    with pytest.raises(
        StageFailedError, match=r"ranks networks with a Kendall tau of -1.00, and the least is 0.8"
    ):
        trust()


DEEP = """\
name: deep
threads: 1
data: {name: digits}
model: {name: resnet, depth: 14, width: 8}
train: {epochs: 3, batch_size: 64, optimizer: {lr: 1.0e-2}}
benchmark: {budget_seconds: 0.2, processes: 1}
candidates:
  float: []
  short:
    - elastic: {macs: 0.4, depth: true, train: {epochs: 2}, scored: 8, population: 8, generations: 2,
                finalists: 4, converged: 0.5}
    - finetune: {epochs: 1}
    - quantize: {method: ptq}
  both:
    - ensemble: {members: 2, take: average}
    - prune: {ratio: 0.3}
    - finetune: {epochs: 1}
    - quantize: {method: ptq}
targets: [host-cpu]
"""


@pytest.mark.slow
def test_what_lost_blocks_and_what_is_several_goes_on_down_the_chain(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(DEEP)
    found = hwopt("pipeline", "run", "p.yaml", "--json", cwd=tmp_path)
    assert found.code == 0, found.err
    rows = {r["candidate"]: r for r in found.json["results"]}
    short, both = rows["short"], rows["both"]
    assert short["details"]["elastic"]["winner"]["left_out"], "no block was left out at 0.4 of the MACs"
    assert short["macs"] <= 0.4 * rows["float"]["macs"]
    assert short["accuracy"] > 0.7
    assert 0.6 < both["parameters"] / rows["float"]["parameters"] < 1.4  # two of 0.7 of the channels
    assert both["accuracy"] > 0.7
