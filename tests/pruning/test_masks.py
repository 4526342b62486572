from __future__ import annotations

import pytest
import torch
from torch import nn

from hwopt.errors import ConfigError
from hwopt.pruning.masks import Gradual, KeepZeros, apply, magnitude_masks, pattern_masks, zero_share


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 4))


def test_the_smallest_weights_go() -> None:
    module = net()
    masks = magnitude_masks(module, 0.75, network=True)
    weights = {name: p.detach().abs() for name, p in module.named_parameters() if name in masks}
    largest_gone = max(float((w * ~masks[name]).max()) for name, w in weights.items())
    least_kept = min(float(w[masks[name]].min()) for name, w in weights.items())
    assert largest_gone <= least_kept
    apply(module, masks)
    assert zero_share(module) == pytest.approx(0.75, abs=0.01)


def test_layers_alike() -> None:
    module = net()
    apply(module, magnitude_masks(module, 0.5, network=False))
    for weight in (module[0].weight, module[2].weight, module[4].weight):
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_ties_do_not_change_the_count() -> None:
    module = nn.Linear(10, 10)
    nn.init.ones_(module.weight)
    apply(module, magnitude_masks(module, 0.3, network=True))
    assert zero_share(module) == pytest.approx(0.3)


def test_two_of_four_neighbours_along_the_input_channels_stay() -> None:
    module = net()
    masks, skipped = pattern_masks(module, 2, 4)
    assert set(skipped) == {"0.weight"}  # one input channel
    assert "no multiple of 4" in skipped["0.weight"]
    weight, mask = module[2].weight.detach(), masks["2.weight"]
    rows = mask.movedim(1, -1).reshape(-1, 4)
    assert (rows.sum(1) == 2).all()
    values = weight.abs().movedim(1, -1).reshape(-1, 4)
    assert torch.equal((values * rows).sum(1), values.sort(1).values[:, 2:].sum(1))


def test_a_pattern_that_no_layer_can_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no layer can have the pattern 2:4"):
        pattern_masks(nn.Linear(3, 3), 2, 4)


def test_zeros_stay_while_training() -> None:
    module = net()
    apply(module, magnitude_masks(module, 0.5, network=True))
    hook = KeepZeros(module)
    before = {name: p == 0 for name, p in module.named_parameters() if p.dim() > 1}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(3):
        module(torch.rand(4, 1, 5, 5)).sum().backward()
        optimizer.step()
        hook.stepped()
    for name, zeros in before.items():
        assert torch.equal(dict(module.named_parameters())[name] == 0, zeros)


def test_zeros_become_more_along_a_cubic_and_then_stay() -> None:
    module = net()
    hook = Gradual(module, 0.8, network=True, ramp=0.5, every=1)
    shares = []
    for step in range(20):
        hook.penalty(step / 20)
        hook.stepped()
        shares.append(zero_share(module))
    assert shares == sorted(shares)
    assert shares[2] == pytest.approx(0.8 * (1 - (1 - 0.2) ** 3), abs=0.01)
    assert shares[10:] == [pytest.approx(0.8, abs=0.01)] * 10
