from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hwopt import checkpoints
from hwopt.core.choices import Choice
from hwopt.errors import ConfigError
from hwopt.models.build import build_model, resize_to
from hwopt.testing.models import SAMPLE_SHAPE, images, tiny_net


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "least", "kept"),
    [
        (100, 0.36, 64, 8, 64),  # flooring would keep none
        (64, 0.5, 8, 8, 32),
        (60, 0.5, 8, 8, 32),  # nearest, not floor
        (16, 0.9, 8, 8, 8),  # never below the least width
        (4, 0.5, 8, 8, 4),  # too narrow to cut
        (10, 0.5, 1, 1, 5),
    ],
)
def test_widths(width: int, ratio: float, multiple: int, least: int, kept: int) -> None:
    assert width_after(width, ratio, multiple, least) == kept


@pytest.mark.parametrize("name", ["mlp", "cnn", "mobilenet_v2"])
def test_pruned_networks_run_reload_and_keep_multiples(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape, choice = (1, 16, 16), Choice(name=name, factory=None, options={})
    net = build_model(choice, shape, 10, None)
    before = sum(p.numel() for p in net.parameters())
    cuts = prune_channels(net, shape, ratio=0.5, multiple=8, least=8)
    assert sum(p.numel() for p in net.parameters()) < 0.45 * before
    assert all(cut.after % 8 == 0 for cut in cuts)
    x = torch.rand(3, *shape)
    net.eval()
    assert net(x).shape == (3, 10)
    recipe = checkpoints.Recipe(
        model=choice, sample_shape=shape, classes=10, shapes=checkpoints.shapes_of(net)
    )
    checkpoints.save(tmp_path / "m.safetensors", net, recipe)
    again = checkpoints.load(tmp_path / "m.safetensors", None)
    again.module.eval()
    assert torch.equal(again.module(x), net(x))


def test_weak_channels_go_first() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[0].weight[::2] *= 1e-3
        strong = net[0].weight[1::2].clone()
    prune_channels(net, SAMPLE_SHAPE, ratio=0.5, multiple=1, least=1)
    assert torch.equal(net[0].weight, strong)
    assert net[4].out_features == 2  # the classes stay


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing can be cut"):
        prune_channels(tiny_net(), SAMPLE_SHAPE, ratio=0.3, multiple=16, least=16)


def test_residual_and_depthwise_stay_consistent() -> None:
    net = tiny_net()
    cuts = prune_channels(net, SAMPLE_SHAPE, ratio=0.5, multiple=8, least=8)
    assert net(images()).shape == (64, 4)
    assert net.depthwise[0].groups == net.stem[0].out_channels == 8
    assert any(cut.coupled >= 4 for cut in cuts)


def test_resize_leaves_equal_shapes_alone() -> None:
    net = tiny_net()
    weight = net.stem[0].weight
    resize_to(net, checkpoints.shapes_of(net))
    assert net.stem[0].weight is weight
