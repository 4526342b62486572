from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from hwopt.core.hardware import Pruning
from hwopt.errors import ConfigError
from hwopt.pruning.cut import cut, full_widths, strongest
from hwopt.pruning.importance import importance
from hwopt.pruning.structure import Group, Structure
from hwopt.pruning.widths import kept_share, legal_widths, nearest, ranked, solve, uniform
from hwopt.testing.models import CLASSES, SAMPLE_SHAPE, images
from tests.pruning.test_structure import examined


def two_layers(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()


def labelled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(16, seed), torch.arange(16) % CLASSES) for seed in range(4)]


@pytest.mark.parametrize("method", ["l1", "l2", "batch_norm", "taylor", "fisher", "hessian"])
def test_channels_that_do_nothing_are_cut_first_and_the_outputs_stay(method: str) -> None:
    net = two_layers()
    weak = torch.tensor([1, 4, 6, 9])
    with torch.no_grad():
        net[0].weight[weak] *= 1e-4
        net[0].bias[weak] = 0.0
        net[1].weight[weak] = 1e-4
        net[1].bias.fill_(0.5)  # none of the others is dead behind its ReLU
        net[1].bias[weak] = 0.0
        net[3].weight[:, weak] *= 1e-4
        nn.init.normal_(net[3].weight[:, [0, 2, 3, 5]], std=0.5)
    structure = examined(net, SAMPLE_SHAPE)
    if method == "batch_norm":
        structure = structure.without({"3": "it has no batch norm"})
    scores = importance(method, net, structure, labelled())
    assert set(np.argsort(scores["0"])[:4]) == set(weak.tolist())
    before = net(images())
    cut(net, structure, strongest(structure, scores, {"0": 12}))
    assert torch.allclose(net(images()), before, atol=1e-3)


def test_batch_norm_importance_needs_batch_norm() -> None:
    net = two_layers(norm=False)
    with pytest.raises(ConfigError, match="no batch norm scales the channels of 0"):
        importance("batch_norm", net, examined(net, SAMPLE_SHAPE))


def test_gradient_methods_need_samples() -> None:
    net = two_layers()
    with pytest.raises(ConfigError, match="needs labelled samples"):
        importance("taylor", net, examined(net, SAMPLE_SHAPE))


def test_taylor_is_the_loss_that_changes_when_a_channel_goes() -> None:
    """First order, so: the same order as the true change for channels of little weight."""
    net = two_layers()
    with torch.no_grad():
        net[3].weight *= 0.1
    structure = examined(net, SAMPLE_SHAPE)
    batches = [(images(64), torch.arange(64) % CLASSES)]
    scores = importance("taylor", net, structure, batches)["3"]
    loss = nn.functional.cross_entropy
    before = float(loss(net(batches[0][0]), batches[0][1]).detach())
    changes = []
    for channel in range(8):
        trial = two_layers()
        trial.load_state_dict(net.state_dict())
        with torch.no_grad():
            trial[3].weight[channel] = 0
            trial[3].bias[channel] = 0
        changes.append((float(loss(trial(batches[0][0]), batches[0][1]).detach()) - before) ** 2)
    assert np.corrcoef(np.sqrt(scores), np.sqrt(changes))[0, 1] > 0.9


def group(width: int, channels: int = 1) -> Group:
    return Group(layer="g", units=np.arange(1, width + 1), channels=channels)


@pytest.mark.parametrize(
    ("width", "kept", "multiple", "least", "expected"),
    [
        (100, 0.64, 64, 8, 64),  # flooring would keep none
        (64, 0.5, 8, 8, 32),
        (60, 0.5, 8, 8, 32),  # nearest, and of two as near the wider
        (16, 0.1, 8, 8, 8),  # never below the least width
        (4, 0.5, 8, 8, 4),  # too narrow to cut
        (10, 0.5, 1, 1, 5),
    ],
)
def test_widths_are_the_nearest_that_the_device_likes(
    width: int, kept: float, multiple: int, least: int, expected: int
) -> None:
    rules = Pruning(channel_multiple=multiple, least_channels=least)
    assert nearest(group(width), width * kept, rules) == expected


def test_a_unit_of_several_channels_counts_as_so_many() -> None:
    rules = Pruning(channel_multiple=16, least_channels=16)
    assert legal_widths(group(12, 8), rules) == [2, 4, 6, 8, 10, 12]  # heads of 8 channels
    assert legal_widths(group(5, 64), rules) == [1, 2, 3, 4, 5]


def structure_and_scores() -> tuple:
    net = two_layers()
    structure = examined(net, SAMPLE_SHAPE)
    return structure, importance("l2", net, structure)


def test_uniform_is_of_the_widths_before_the_first_of_several_cuts() -> None:
    structure, _ = structure_and_scores()
    assert uniform(structure, 0.5, Pruning(), {"0": 32, "3": 16}) == {"0": 16, "3": 8}


def test_ranked_meets_the_share_over_the_whole_network() -> None:
    structure, scores = structure_and_scores()
    scores = {"0": np.linspace(0.1, 0.2, 16), "3": np.linspace(5.0, 6.0, 8)}
    scores["0"][:8] = 0.001
    widths = ranked(structure, scores, 1 / 3, Pruning())
    assert sum(widths.values()) == 16
    assert widths["0"] < widths["3"] * 2


def cost_of(price: dict[str, float]):
    full = sum(price.values())
    return lambda many: [sum(price[n] * w[n] / {"0": 16, "3": 8}[n] for n in price) / full for w in many]


@pytest.mark.parametrize("goal", [0.8, 0.5, 0.3])
def test_solve_reaches_the_goal_from_below_and_closely(goal: float) -> None:
    structure, scores = structure_and_scores()
    solution = solve(structure, scores, cost_of({"0": 3.0, "3": 1.0}), goal, Pruning())
    assert solution.met
    assert goal * 0.85 <= solution.cost <= goal


def test_solve_cuts_where_time_is() -> None:
    structure, scores = structure_and_scores()
    equal = {name: np.ones_like(s) for name, s in scores.items()}
    dear_first = solve(structure, equal, cost_of({"0": 9.0, "3": 1.0}), 0.6, Pruning()).widths
    dear_last = solve(structure, equal, cost_of({"0": 1.0, "3": 9.0}), 0.6, Pruning()).widths
    assert dear_first["0"] / 16 < dear_first["3"] / 8
    assert dear_last["3"] / 8 < dear_last["0"] / 16


def test_solve_says_when_even_the_narrowest_costs_too_much() -> None:
    structure, scores = structure_and_scores()
    rules = Pruning(channel_multiple=8, least_channels=8)
    solution = solve(structure, scores, cost_of({"0": 1.0, "3": 1.0}), 0.2, rules)
    assert not solution.met
    assert solution.widths == {"0": 8, "3": 8}


def test_solve_leaves_fixed_widths_alone() -> None:
    structure, scores = structure_and_scores()
    solution = solve(structure, scores, cost_of({"0": 1.0, "3": 1.0}), 0.7, Pruning(), {"0": 16})
    assert solution.widths["0"] == 16
    assert solution.met


def test_solve_survives_costs_that_do_not_fall() -> None:
    structure, scores = structure_and_scores()
    solution = solve(structure, scores, lambda many: [1.0] * len(many), 0.5, Pruning())
    assert not solution.met
    assert set(solution.widths) == set(full_widths(structure))


def test_the_last_channels_of_a_group_count_most() -> None:
    scores = np.ones(16)
    losses = [np.log(kept_share(scores, w) / kept_share(scores, w - 1)) for w in range(16, 1, -1)]
    assert losses == sorted(losses)


@pytest.mark.parametrize(
    "scores", [np.ones(64), np.zeros(64), np.linspace(1, 2, 64)], ids=["equal", "zero", "rising"]
)
def test_solve_ends_where_exchanges_bring_nothing(scores: np.ndarray) -> None:
    groups = tuple(Group(layer=n, units=np.arange(64) + o, channels=1) for n, o in (("a", 1), ("b", 65)))
    structure = Structure(groups=groups, owners={}, frozen={})
    asked: list[int] = []

    def cost(many: Sequence[Mapping[str, int]]) -> list[float]:
        asked.append(len(many))
        return [sum(w.values()) / 128 for w in many]

    rules = Pruning(channel_multiple=8, least_channels=8)
    for goal in (0.598, 0.55, 0.9):
        assert solve(structure, {"a": scores, "b": scores}, cost, goal, rules).met
    assert len(asked) < 200


def test_ranked_counts_groups_that_are_kept_whole() -> None:
    groups = tuple(Group(layer=n, units=np.arange(64) + o, channels=1) for n, o in (("a", 1), ("b", 65)))
    structure = Structure(groups=groups, owners={}, frozen={})
    rng = np.random.default_rng(0)
    scores = {"a": rng.random(64), "b": rng.random(64)}
    widths = ranked(structure, scores, 0.4, Pruning(), {"a": 64})
    assert widths["a"] == 64
    assert sum(widths.values()) == pytest.approx(0.6 * 128, abs=2)


@pytest.mark.parametrize("method", ["taylor", "fisher", "hessian"])
def test_gradients_are_of_what_a_layer_writes_also_where_weights_lie_the_other_way(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(1, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    ).eval()  # fmt: skip
    scores = importance(method, net, examined(net, SAMPLE_SHAPE), labelled())
    assert (scores["0"] > 0).any()
