"""What networks cost at other widths: resized files against exported ones, and the answers in order."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hwopt.config.hardware import shipped
from hwopt.core.choices import Choice
from hwopt.core.measurement import Tier
from hwopt.latency.bench import Bench
from hwopt.latency.costs import builder, exported, folded, macs, measured, roofline
from hwopt.latency.precision import fastest_precision
from hwopt.latency.scaled import Scaled
from hwopt.models.build import build_model
from hwopt.pruning.cut import cut, everything, full_widths, narrowed
from tests.pruning.nets import SHAPE, Attention, Random
from tests.pruning.test_structure import SEQUENCE, alive, examined
from tests.quantization.nets import run_onnx


def small_mobilenet() -> torch.nn.Module:
    torch.manual_seed(0)
    choice = Choice(name="mobilenet_v2", factory=None, options={"width": 0.25})
    return build_model(choice, (1, 12, 12), 5, None)


NETS = {
    "mobilenet": (small_mobilenet, (1, 12, 12)),
    "flatten": (lambda: Random(["residual", "grouped", "concat"], [16, 16, 8], flatten=True), SHAPE),
}


@pytest.mark.parametrize("name", ["flatten", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_a_resized_file_is_the_exported_one(name: str) -> None:
    make, shape = NETS[name]
    net = alive(make())
    structure = examined(net, shape)
    shapes = {n: tuple(v.shape) for n, v in net.state_dict().items()}
    scaled = Scaled(exported(net, shape), structure, shapes)
    rng = np.random.default_rng(0)
    for _ in range(3):
        keep = narrowed(structure, {g.layer: int(rng.integers(1, g.width + 1)) for g in structure.groups})
        small = copy.deepcopy(net)
        cut(small, structure, keep)
        x = np.random.default_rng(1).random((3, *shape), np.float32)
        made, wanted = (run_onnx(m, {"input": x})[0] for m in (scaled.at(keep), exported(small, shape)))
        assert np.allclose(made, wanted, atol=1e-4)


def test_what_cannot_be_resized_is_exported_at_every_width() -> None:
    net = Attention().eval()
    structure = examined(net, SEQUENCE)
    shapes = {n: tuple(v.shape) for n, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="no parameter"):
        Scaled(exported(net, SEQUENCE), structure, shapes)
    build = builder(net, structure, SEQUENCE)
    keep = narrowed(structure, {"up": 16})
    small = copy.deepcopy(net)
    cut(small, structure, keep)
    x = torch.rand(2, *SEQUENCE)
    assert np.allclose(run_onnx(build(keep), {"input": x.numpy()})[0], small(x).detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_costs_are_shares_of_the_origin_and_fall_with_the_width() -> None:
    net = small_mobilenet()
    structure = examined(net, (1, 12, 12))
    build = builder(net, structure, (1, 12, 12))
    full = full_widths(structure)
    half = {name: max(1, width // 2) for name, width in full.items()}
    for cost in (
        macs(structure, build),
        roofline(structure, build, shipped("x86-avx2"), 1),
        folded(structure, build, shipped("pynq-z2")),
    ):
        assert cost.tier is Tier.ESTIMATED
        whole, less = cost([full, half])
        assert whole == pytest.approx(1.0)
        assert 0.1 < less < 0.7
    small = build(narrowed(structure, half))
    assert macs(structure, build, small)([half])[0] == pytest.approx(1.0)


def bench(shape: tuple[int, ...], batch: int = 1) -> Bench:
    sample = np.random.default_rng(0).random((batch, *shape), np.float32)
    return Bench(runtime="onnxruntime", hardware=shipped("generic-cpu"), sample=sample)


def test_measured_costs_order_widths_that_differ_plainly() -> None:
    torch.manual_seed(0)
    net = build_model(Choice(name="cnn", factory=None, options={"width": 32}), (1, 28, 28), 10, None)
    structure = examined(net, (1, 28, 28))
    cost = measured(structure, builder(net, structure, (1, 28, 28)), bench((1, 28, 28)))
    assert cost.tier is Tier.MEASURED
    full = full_widths(structure)
    whole, quarter = cost([full, {name: width // 4 for name, width in full.items()}])
    assert quarter < 0.6 * whole


def test_the_fastest_precision_is_among_those_tried_and_leaves_what_it_must(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28)
    net = build_model(Choice(name="cnn", factory=None, options={"width": 16}), shape, 10, None)
    model = exported(net, shape)
    before = model.SerializeToString()
    scheme = shipped("generic-cpu").quantization
    samples = np.random.default_rng(0).random((8, *shape), np.float32)
    found = fastest_precision(model, scheme, [{"input": samples}], bench(shape), never=[0, 4])
    assert model.SerializeToString() == before
    assert len(found.integer) == 5
    assert not found.integer[0]
    assert not found.integer[4]
    assert any(found.integer)
    assert {count for count, _ in found.trials} == {1, 2, 3}
    (rule,) = found.rules(["a.b", "c", "d", "e", "f"])
    assert rule.keep_float
    assert rule.layers.startswith(r"a\.b")


def test_resizing_leaves_the_file_it_came_from_alone() -> None:
    net = small_mobilenet()
    structure = examined(net, (1, 12, 12))
    model = exported(net, (1, 12, 12))
    before = model.SerializeToString()
    shapes = {n: tuple(v.shape) for n, v in net.state_dict().items()}
    same = Scaled(model, structure, shapes).at(everything(structure))
    assert model.SerializeToString() == before
    assert [i.name for i in same.graph.initializer] == [
        i.name for i in onnx.load_from_string(before).graph.initializer
    ]
