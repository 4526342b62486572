from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hwopt import checkpoints
from hwopt.config.hardware import shipped
from hwopt.core.choices import Choice
from hwopt.models.build import build_model, resize_to, set_counters
from hwopt.pruning.cut import attributes_at, cut, examine, narrowed, run
from hwopt.pruning.cut import grouped as groups_of
from hwopt.pruning.structure import Structure, structure_of
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import PtqSettings
from hwopt.testing.models import SAMPLE_SHAPE, tiny_net
from tests.pruning.nets import KINDS, SHAPE, Attention, Fixed, Random, Recurrent
from tests.quantization.nets import float_onnx, run_onnx

SEQUENCE = (5, 6)


def examined(net: nn.Module, shape: tuple[int, ...]) -> Structure:
    return examine(net, to_graph(net, shape, fold_batch_norm=False), shape)


def alive(net: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return net.eval()


def zeroed(net: nn.Module, structure: Structure, keep: np.ndarray) -> nn.Module:
    """The whole network with all that makes a cut channel set to zero: after ReLU it says nothing."""
    silent = copy.deepcopy(net)
    state = silent.state_dict()
    for (name, dim), ids in structure.owners.items():
        gone = torch.from_numpy((ids >= 0) & ~keep[ids.clip(0)])
        if dim == 0 and "running" not in name:
            state[name][gone] = 0
    return silent


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    flatten=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_cuts_of_random_networks_leave_what_the_kept_channels_compute(
    tmp_path: Path, kinds: list[str], flatten: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = alive(Random(kinds, [int(w) for w in rng.choice([8, 12, 16], len(kinds))], flatten=flatten))
    structure = examined(net, SHAPE)
    assert structure.groups
    widths = {g.layer: int(rng.integers(1, g.width + 1)) for g in structure.groups}
    keep = narrowed(structure, widths)
    small = copy.deepcopy(net)
    cut(small, structure, keep)
    x = torch.rand(4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(small(x), zeroed(net, structure, keep)(x), atol=1e-5)
        expected = small(x).numpy()
    path = float_onnx(small, SHAPE, tmp_path / f"{seed}.onnx")
    assert np.allclose(run_onnx(path, {"input": x.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn", "mobilenet_v2"])
def test_pruned_networks_run_reload_and_train(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape, choice = (1, 16, 16), Choice(name=name, factory=None, options={})
    net = build_model(choice, shape, 10, None)
    structure = examined(net, shape)
    assert list(structure.frozen.values()) == ["they are the network's outputs"]
    cut(net, structure, narrowed(structure, {g.layer: g.width // 2 for g in structure.groups}))
    x = torch.rand(3, *shape)
    net.train()
    net(x).sum().backward()
    net.eval()
    recipe = checkpoints.Recipe(
        model=choice, sample_shape=shape, classes=10, shapes=checkpoints.shapes_of(net)
    )
    checkpoints.save(tmp_path / "m.safetensors", net, recipe)
    again = checkpoints.load(tmp_path / "m.safetensors", None)
    again.module.eval()
    assert torch.equal(again.module(x), net(x))


def test_branches_of_a_concatenation_are_groups_of_their_own() -> None:
    net = Random(["concat", "plain"], [8, 8], flatten=False)
    structure = examined(net, SHAPE)
    names = {g.layer: g.width for g in structure.groups}
    assert names["blocks.0.left"] == 4
    assert names["blocks.0.right"] == 6
    columns = structure.owners["blocks.1.enter.weight", 1]
    left = next(g for g in structure.groups if g.layer == "blocks.0.left")
    assert columns[:4].tolist() == left.units.tolist()


def test_residual_and_depthwise_stay_consistent() -> None:
    net = tiny_net()
    structure = examined(net, SAMPLE_SHAPE)
    assert [(g.layer, g.width) for g in structure.groups] == [("stem.0", 16)]
    cut(net, structure, narrowed(structure, {"stem.0": 8}))
    assert net.depthwise[0].groups == net.stem[0].out_channels == net.point.out_channels == 8
    run(net, SAMPLE_SHAPE)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_of_attention_go_as_one_and_are_counted(fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Attention(fused=fused).eval()
    structure = examined(net, SEQUENCE)
    heads = next(g for g in structure.groups if g.width == 4)
    assert heads.channels == 8
    assert "up" in {g.layer for g in structure.groups}
    keep = narrowed(structure, {heads.layer: 3, "up": 20, "enter": 30})
    small = copy.deepcopy(net)
    cut(small, structure, keep)
    assert small.num_heads == 3
    assert attributes_at(structure, keep) == {"num_heads": 3}
    assert small.out.in_features == 24
    # Heads that are gone had to say nothing: their values were zero.
    x = torch.rand(2, *SEQUENCE)
    silent = zeroed(net, structure, narrowed(structure, {heads.layer: 3}))
    heads_only = copy.deepcopy(net)
    cut(heads_only, structure, narrowed(structure, {heads.layer: 3}))
    assert torch.allclose(heads_only(x), silent(x), atol=1e-5)
    float_onnx(small, SEQUENCE, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("kind", "layers", "both"), [("lstm", 1, False), ("lstm", 2, True), ("gru", 1, True)]
)
def test_hidden_units_of_recurrent_layers(kind: str, layers: int, both: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(kind, layers=layers, both=both).eval()
    structure = examined(net, SEQUENCE)
    (group,) = structure.groups
    assert group.width == 24
    small = copy.deepcopy(net)
    keep = narrowed(structure, {group.layer: 16})
    cut(small, structure, keep)
    assert small.cell.hidden_size == 16
    # A unit whose gates have no weights stays at zero when it starts there, for LSTM and GRU alike.
    x = torch.rand(2, *SEQUENCE)
    assert torch.allclose(small(x), zeroed(net, structure, keep)(x), atol=1e-5)


def test_a_width_fixed_in_forward_is_refused_with_the_reason() -> None:
    structure = examined(Fixed(), SHAPE)
    assert [g.layer for g in structure.groups] == ["second"]
    assert "fixed in forward()" in structure.frozen["first"]


def test_multihead_attention_of_torch_is_refused_not_corrupted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.up, self.head = nn.Linear(16, 32), nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            result: torch.Tensor = self.head(torch.relu(self.up(x)).mean(1))
            return result

    structure = examined(Net(), (5, 16))
    assert [g.layer for g in structure.groups] == ["up"]
    assert "attention" in structure.frozen


def test_an_unknown_operator_freezes_what_it_reads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.roll(self.first(x), 1, 1)
            result: torch.Tensor = self.head(self.second(x).mean((2, 3)))
            return result

    net = Net()
    structure = structure_of(to_graph(net, SHAPE, fold_batch_norm=False), net)
    assert [g.layer for g in structure.groups] == ["second"]
    assert "roll is not known" in structure.frozen["first"]


def test_resize_leaves_equal_shapes_alone() -> None:
    net = tiny_net()
    weight = net.stem[0].weight
    resize_to(net, checkpoints.shapes_of(net))
    assert net.stem[0].weight is weight


class Lambda(nn.Module):
    """Layers by name and a forward function."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def test_a_counter_of_heads_belongs_to_the_heads_and_to_nothing_of_equal_width() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
            self.gate, self.head = nn.Linear(24, 4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = self.out(mixed.transpose(1, 2).reshape(b, n, -1))
            result: torch.Tensor = self.head(torch.relu(self.gate(x)).mean(1))
            return result

    net = Net().eval()
    structure = examined(net, (5, 24))
    groups = {g.layer: g for g in structure.groups}
    assert groups["qkv"].width == 4
    keep = narrowed(structure, {"gate": 2})
    small = copy.deepcopy(net)
    cut(small, structure, keep)
    assert small.heads == 4
    x = torch.rand(2, 5, 24)
    assert torch.allclose(small(x), zeroed(net, structure, keep)(x), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape", "frozen"),
    [
        (  # pooling along the axis that looks like channels mixes them
            Lambda(
                lambda s, x: s.head(nn.functional.avg_pool1d(torch.relu(s.first(x)), 3, 1, 1).mean(1)),
                first=nn.Linear(6, 8),
                head=nn.Linear(8, 5),
            ),
            (7, 6),
            "first",
        ),
        (  # a literal split that fits by chance at one width less
            Lambda(
                lambda s, x: s.head(torch.stack([u.sum(1) for u in s.first(x).split(4, 1)], 1).mean((2, 3))),
                first=nn.Conv2d(3, 8, 1),
                head=nn.Linear(2, 5),
            ),
            SHAPE,
            "first",
        ),
    ],
    ids=["pool", "split"],
)
def test_what_would_go_wrong_at_other_widths_is_frozen(
    net: nn.Module, shape: tuple[int, ...], frozen: str
) -> None:
    structure = examined(net, shape)
    assert not structure.groups
    assert frozen in structure.frozen


def test_buffers_that_no_checkpoint_stores_freeze_only_what_they_touch() -> None:
    net = Lambda(
        lambda s, x: s.head(torch.relu(s.second(torch.relu(s.first(x)) * s.gain)).mean((2, 3))),
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(8, 6, 1),
        head=nn.Linear(6, 5),
    )
    net.register_buffer("gain", torch.rand(8, 1, 1), persistent=False)
    structure = examined(net, SHAPE)
    assert [g.layer for g in structure.groups] == ["second"]


def test_a_map_of_one_channel_gates_a_trunk_that_can_still_be_cut() -> None:
    net = Lambda(
        lambda s, x: s.head((s.trunk(x) * torch.relu(s.gate(x))).relu().mean((2, 3))),
        trunk=nn.Conv2d(3, 8, 1),
        gate=nn.Conv2d(3, 1, 1),
        head=nn.Linear(8, 5),
    )
    assert [g.layer for g in examined(net, SHAPE).groups] == ["trunk"]


def test_a_class_token_and_positions_are_cut_along() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.token = nn.Linear(6, 16), nn.Parameter(torch.rand(1, 1, 16))
            self.position, self.head = nn.Parameter(torch.rand(1, 6, 16)), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.enter(x)], 1) + self.position
            result: torch.Tensor = self.head(x.mean(1))
            return result

    net = Net()
    structure = examined(net, SEQUENCE)
    assert [(g.layer, g.width) for g in structure.groups] == [("enter", 16)]
    cut(net, structure, narrowed(structure, {"enter": 9}))
    assert net.token.shape == (1, 1, 9)


def test_several_cuts_keep_the_units_of_the_first_reading() -> None:
    """A single channel a group looks like a depthwise convolution; it is the same group all the same."""
    net = alive(Random(["grouped"], [16], flatten=False))
    structure = examined(net, SHAPE)
    grouped = next(g for g in structure.groups if g.layer == "blocks.0.grouped")
    keep = narrowed(structure, {grouped.layer: 1, "blocks.0.enter": 1})
    cut(net, structure, keep)
    after = structure.after(keep)
    assert {g.layer: g.width for g in after.groups}[grouped.layer] == 1
    assert net.blocks[0].grouped.groups == 4
    run(net, SHAPE)


def test_groups_of_convolutions_survive_the_file() -> None:
    for kind in ("grouped", "depthwise"):
        torch.manual_seed(0)
        net, fresh = (alive(Random([kind], [16], flatten=False)) for _ in range(2))
        structure = examined(net, SHAPE)
        cut(net, structure, narrowed(structure, {g.layer: 1 for g in structure.groups}))
        structure = examined(net, SHAPE)  # a second step, which reads the network anew
        if structure.groups:
            cut(net, structure, narrowed(structure, {g.layer: 1 for g in structure.groups}))
        resize_to(fresh, checkpoints.shapes_of(net))
        set_counters(fresh, groups_of(net))
        fresh.load_state_dict(net.state_dict())
        x = torch.rand(2, *SHAPE)
        assert torch.equal(fresh(x), net(x))


@pytest.mark.parametrize(
    "kinds", [["residual", "concat", "depthwise"], ["grouped", "squeeze", "halves"]], ids="-".join
)
def test_pruned_networks_are_quantized_like_any_other(kinds: list[str], tmp_path: Path) -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    net = alive(Random(kinds, [16] * 3, flatten=True))
    structure = examined(net, SHAPE)
    widths = {g.layer: int(rng.integers(2, g.width + 1)) for g in structure.groups if g.width > 1}
    cut(net, structure, narrowed(structure, widths))
    x = torch.rand(64, *SHAPE)
    made = quantize_module(net, SHAPE, shipped("generic-cpu").quantization, x, PtqSettings(tune=False))
    path = tmp_path / "q.onnx"
    export_onnx(deployed(made.graph), SHAPE, path, {})
    with torch.no_grad():
        twin = made.graph(x).numpy()
    assert np.mean(run_onnx(path, {"input": x.numpy()})[0].argmax(1) == twin.argmax(1)) >= 0.95
    assert np.allclose(run_onnx(path, {"input": x.numpy()}, optimized=False)[0], twin, atol=0.05)
