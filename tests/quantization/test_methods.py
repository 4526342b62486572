"""Each method does what its paper says, and leaves alone what it must."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwopt.config.hardware import shipped
from hwopt.core.hardware import LayerRule, Mode, QDType, QuantizationScheme, TensorScheme
from hwopt.errors import ConfigError
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.adaround import adaround
from hwopt.quantization.equalize import equalize
from hwopt.quantization.fake_quant import FakeQuant, Phase
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, deployed, fake_quantizers, insert
from hwopt.quantization.live_norms import LiveNorms
from hwopt.quantization.mixed import Limit, choose, mixed_rules
from hwopt.quantization.oscillation import Damping, Freezing, weights
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.sensitivity import LayerNoise, layer_noise
from hwopt.quantization.settings import (
    AdaRoundSettings,
    MixedSettings,
    ObserverSettings,
    OscillationSettings,
    PtqSettings,
)
from hwopt.quantization.smooth import smooth
from hwopt.testing.models import SAMPLE_SHAPE, images, tiny_net
from tests.quantization.nets import Lambda, float_onnx, plain_cnn, run_onnx

GENERIC = shipped("generic-cpu").quantization


def with_bits(weights_dtype: str, activations: str = "uint8") -> QuantizationScheme:
    return GENERIC.model_copy(
        update={
            "weights": GENERIC.weights.with_dtype(weights_dtype),
            "activations": GENERIC.activations.with_dtype(activations),
        }
    )


def per_tensor() -> QuantizationScheme:
    scheme = TensorScheme(dtype="int8", symmetric=True, granularity="tensor")
    return GENERIC.model_copy(update={"weights": scheme})


def outputs(graph: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = graph(x).numpy()
    return result


# --- cross-layer equalization ---------------------------------------------------------------------------


def test_equalization_keeps_the_function_and_balances_channels() -> None:
    net = plain_cnn(spread=100.0)
    graph = to_graph(net, SAMPLE_SHAPE)
    x = images()
    before = outputs(graph, x)
    assert equalize(FxNet(graph)) == 3
    np.testing.assert_allclose(outputs(graph, x), before, atol=1e-5)
    first = dict(graph.named_parameters())["0.weight"].detach()
    reach = first.abs().amax((1, 2, 3))
    assert float(reach.max() / reach.min()) < 10  # it was 100
    scheme = per_tensor()
    plain = quantize_module(net, SAMPLE_SHAPE, scheme, x, PtqSettings(tune=False))
    equal = quantize_module(net, SAMPLE_SHAPE, scheme, x, PtqSettings(tune=False, equalize=True))
    gain = sqnr_db(before, outputs(equal.graph, x)) - sqnr_db(before, outputs(plain.graph, x))
    assert gain > 1.5  # dB; one scale for all channels suffers most from unequal ones


def test_equalization_stops_at_relu6_and_at_branches() -> None:
    clipped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval()
    assert equalize(FxNet(to_graph(clipped, SAMPLE_SHAPE))) == 0
    branch = Lambda(
        lambda m, x: m.b(y := torch.relu(m.a(x))) + y, a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 4, 1)
    ).eval()
    assert equalize(FxNet(to_graph(branch, SAMPLE_SHAPE))) == 0


# --- SmoothQuant ----------------------------------------------------------------------------------------


def outlier_block(residual: bool) -> Lambda:
    """A layer norm with two great channels in front of two linear layers."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight[:2] *= 50

    def forward(m: Lambda, x: Tensor) -> Tensor:
        y = m.n(x)
        z = torch.relu(m.a(y)) + m.b(y)
        return z + y if residual else z

    return Lambda(forward, n=norm, a=nn.Linear(16, 16), b=nn.Linear(16, 16)).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_keeps_the_function_and_lowers_the_error(residual: bool) -> None:
    net = outlier_block(residual)
    x = torch.randn(64, 6, 16)
    graph = to_graph(net, (6, 16))
    before = outputs(graph, x)
    assert smooth(FxNet(graph), [x], 0.5) == 1
    np.testing.assert_allclose(outputs(graph, x), before, atol=1e-4)
    # What the linear layers read is no longer ruled by two channels.
    plain = quantize_module(net, (6, 16), GENERIC, x, PtqSettings(tune=False))
    smoothed = quantize_module(net, (6, 16), GENERIC, x, PtqSettings(tune=False, smooth=0.5))
    gain = sqnr_db(before, outputs(smoothed.graph, x)) - sqnr_db(before, outputs(plain.graph, x))
    assert gain > (0 if residual else 3)


# --- bias correction ------------------------------------------------------------------------------------


def test_bias_correction_takes_out_the_mean_error() -> None:
    net = plain_cnn()
    x = images()
    exact = outputs(to_graph(net, SAMPLE_SHAPE), x)
    low = with_bits("int3")
    errors = []
    for corrected in (False, True):
        made = quantize_module(net, SAMPLE_SHAPE, low, x, PtqSettings(tune=False, bias_correction=corrected))
        errors.append(np.abs((outputs(made.graph, x) - exact).mean(axis=0)).sum())
    assert errors[1] < errors[0] / 2


# --- AdaRound -------------------------------------------------------------------------------------------


def test_adaround_stays_on_the_grid_and_lowers_the_error() -> None:
    net = plain_cnn()
    x = images(128)
    reference = to_graph(net, SAMPLE_SHAPE)
    exact = outputs(reference, x)
    graph = to_graph(net, SAMPLE_SHAPE)
    insert(graph, with_bits("int3"))
    calibrate(graph, [x])
    before = sqnr_db(exact, outputs(graph, x))
    old = {name: p.detach().clone() for name, p in graph.named_parameters() if p.dim() > 1}
    said: list[str] = []
    settings = AdaRoundSettings(iterations=200)
    assert adaround(reference, graph, x, settings, seed=0, progress=said.append) == 4
    assert sqnr_db(exact, outputs(graph, x)) > before + 1
    assert len(said) == 4
    for node, grid in fake_quantizers(graph):
        name = str(node.args[0].target)  # type: ignore[union-attr]
        if name in old:
            weight = dict(graph.named_parameters())[name]
            torch.testing.assert_close(
                grid(weight).detach(), weight.detach(), atol=1e-6, rtol=1e-5
            )  # already on its grid
            step = grid.effective_scale().detach()
            weight = weight.detach()
            inside = old[name].abs() < step * (grid.high - 1)
            assert float(((weight - old[name]).abs() / step)[inside].max()) <= 1.001  # up or down, no farther


# --- LSQ and LSQ+ ---------------------------------------------------------------------------------------


def test_zero_point_learns_from_values_outside_only() -> None:
    grid = FakeQuant(TensorScheme(dtype="uint4", symmetric=False, granularity="tensor"))
    grid.set_scale(1.0)
    grid.set_zero_point(5)
    grid.learn_zero_point()
    assert grid.zero_share.requires_grad
    grid(torch.tensor([1.0, 2.0])).sum().backward()
    assert float(grid.zero_share.grad) == 0.0  # type: ignore[arg-type]
    grid.zero_share.grad = None
    grid(torch.tensor([100.0])).sum().backward()
    assert float(grid.zero_share.grad) < 0  # type: ignore[arg-type]  # a lower zero point reaches higher
    before = float(grid(torch.tensor([100.0])).detach())
    grid.set_zero_point(4)
    assert float(grid(torch.tensor([100.0])).detach()) == before + 1.0
    one_sided = FakeQuant(TensorScheme(dtype="uint4", symmetric=False, granularity="tensor"))
    one_sided.learn_zero_point()  # its zero point is the least code, as behind a ReLU
    assert not one_sided.zero_share.requires_grad


# --- batch norm that lives on ---------------------------------------------------------------------------


def test_live_norms_change_nothing_until_they_train_and_fold_exactly() -> None:
    net = tiny_net()
    x = images()
    made = quantize_module(net, SAMPLE_SHAPE, GENERIC, x, PtqSettings(tune=False))
    graph = made.graph.eval()
    before = outputs(graph, x)
    norms = LiveNorms(graph, made.reference.meta["normed"], x, epochs=1)
    assert norms.count == 2
    np.testing.assert_allclose(outputs(graph.eval(), x), before, atol=1e-4)
    graph.train()
    graph(images(seed=3))  # statistics move
    with torch.no_grad():
        for module in graph.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(1.3)
    graph.eval()
    trained = outputs(graph, x)
    assert np.abs(trained - before).max() > 1e-3
    norms.epoch(0)
    assert norms.count == 2
    norms.epoch(1)
    assert norms.count == 0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    # The same codes; biases are rounded to int32 anew.
    np.testing.assert_allclose(outputs(graph, x), trained, atol=2e-2 * np.abs(trained).max())


# --- oscillations ---------------------------------------------------------------------------------------


def oscillating() -> tuple[torch.fx.GraphModule, FakeQuant, Tensor]:
    graph = to_graph(nn.Linear(4, 2).eval(), (4,))
    insert(graph, GENERIC)
    calibrate(graph, [torch.randn(16, 4)])
    grid, weight = next(iter(weights(graph)))
    return graph, grid, weight


def test_damping_grows_and_vanishes_on_the_grid() -> None:
    graph, grid, weight = oscillating()
    hook = Damping(graph, OscillationSettings(strength=1.0))
    with torch.no_grad():
        weight.copy_(grid.effective_scale() * 3.4)  # 0.4 of a step off
    start, end = hook.penalty(0.0), hook.penalty(1.0)
    assert start is not None
    assert end is not None
    assert start.item() == pytest.approx(0.0, abs=1e-9)
    assert end.item() == pytest.approx(weight.numel() * 0.4**2, rel=1e-4)
    with torch.no_grad():
        weight.copy_(grid.effective_scale() * 3.0)
    assert hook.penalty(1.0).item() == pytest.approx(0.0, abs=1e-6)  # type: ignore[union-attr]


def test_freezing_holds_a_weight_that_jumps() -> None:
    graph, grid, weight = oscillating()
    hook = Freezing(graph, OscillationSettings(method="freeze", threshold=0.1, momentum=0.1))
    for step in range(12):
        with torch.no_grad():
            weight.view(-1)[0] = float(grid.effective_scale().view(-1)[0]) * (3.4 if step % 2 else 3.6)
        hook.stepped()
    assert hook.frozen_share == pytest.approx(1 / weight.numel())
    held = float(weight.detach().view(-1)[0] / grid.effective_scale().detach().view(-1)[0])
    assert held == pytest.approx(round(held), abs=1e-4)
    with torch.no_grad():
        weight.view(-1)[0] += 1.0
    hook.stepped()
    again = float(weight.detach().view(-1)[0] / grid.effective_scale().detach().view(-1)[0])
    assert again == pytest.approx(held, abs=1e-4)


# --- sensitivity and mixed precision --------------------------------------------------------------------


def test_sensitivity_finds_the_layer_that_hurts() -> None:
    net = plain_cnn()
    with torch.no_grad():
        net[4].weight[:, 0] *= 30  # great weights: a few bits cannot hold the rest of their channels
    x = images()
    reference = to_graph(net, SAMPLE_SHAPE)
    graph = to_graph(net, SAMPLE_SHAPE)
    table = insert(graph, with_bits("int3"))
    calibrate(graph, [x])
    noise = layer_noise(reference, graph, table, x)
    assert len(noise) == 4
    assert max(noise, key=lambda n: n.noise).layer == "_4_weight"
    assert [n.macs for n in noise] == [8 * 9 * 64, 8 * 9 * 64, 8 * 8 * 64, 8 * 4]
    assert all(grid.mode is Phase.QUANTIZE for _, grid in fake_quantizers(graph))


def test_choice_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gain, a, b = rng.random(8), rng.random(8), rng.random(8)
        limits = [Limit("a", a, 1.5), Limit("b", b, 2.0)]
        best = max(
            (
                c
                for n in range(9)
                for c in itertools.combinations(range(8), n)
                if a[list(c)].sum() <= 1.5 and b[list(c)].sum() <= 2.0
            ),
            key=lambda c: gain[list(c)].sum(),
        )
        chosen = choose(gain, limits)
        assert gain[chosen].sum() == pytest.approx(gain[list(best)].sum())
    with pytest.raises(ConfigError, match="exceeded before any layer"):
        choose(gain, [Limit("bytes", a, -1.0)])


def test_budgets_of_mixed_precision() -> None:
    low = [LayerNoise(layer=f"l{i}", node=f"n{i}", noise=10.0 - i, weights=1000, macs=100) for i in range(10)]
    high = [LayerNoise(layer=n.layer, node=n.node, noise=0.0, weights=1000, macs=100) for n in low]
    bits = (QDType.parse("int4"), QDType.parse("int4"))
    assert [r.layers for r in mixed_rules(low, high, bits, MixedSettings())] == ["l0", "l1"]  # a fifth
    sized = MixedSettings(layers=None, bytes=6500)  # 5,000 in 4 bits, 500 more a raised layer
    assert len(mixed_rules(low, high, bits, sized)) == 3
    operations = MixedSettings(layers=None, bit_operations=1.6)  # 16 a MAC; raising costs 48 more
    assert len(mixed_rules(low, high, bits, operations)) == 2
    timed = MixedSettings(raise_to="float", layers=None, latency=1.5)
    slower = ([3.0, 1.0, 1.0, *[9.0] * 7], 10.0)  # what each layer costs in float, and the whole
    assert [r.layers for r in mixed_rules(low, high, bits, timed, slower)] == ["l0", "l1", "l2"]
    to_float = mixed_rules(low, high, bits, MixedSettings(raise_to="float", layers=0.1))
    assert to_float == [LayerRule(layers="l0", keep_float=True)]


def test_mixed_precision_recovers_what_few_bits_lose() -> None:
    net = plain_cnn(16)
    with torch.no_grad():
        net[4].weight[:, 0] *= 30
    x = images(128)
    exact = outputs(net, x)
    scheme = with_bits("int2")
    uniform = quantize_module(net, SAMPLE_SHAPE, scheme, x, PtqSettings(tune=False))
    settings = PtqSettings(tune=False, mixed=MixedSettings(layers=0.25))
    mixed = quantize_module(net, SAMPLE_SHAPE, scheme, x, settings)
    assert len(mixed.settings.rules) == 1
    assert sqnr_db(exact, outputs(mixed.graph, x)) > sqnr_db(exact, outputs(uniform.graph, x)) + 1
    types = {d.tensor: d.scheme.dtype for d in mixed.table.decisions if d.scheme and d.role == "weight"}
    assert sorted(types.values()) == ["int2", "int2", "int2", "int8"]


# --- tuning and rules -----------------------------------------------------------------------------------


def test_tuning_never_ends_below_its_start_and_keeps_what_was_set() -> None:
    net, x = plain_cnn(spread=100.0), images()
    made = quantize_module(net, SAMPLE_SHAPE, per_tensor(), x)
    trials = made.facts["trials"]
    assert isinstance(trials, list)
    scores = [t["sqnr_db"] for t in trials if isinstance(t, dict) and t["kept"]]
    assert scores == sorted(scores)  # type: ignore[type-var]
    assert made.settings.equalize
    fixed = PtqSettings(equalize=False, observer=ObserverSettings(name="min_max"))
    kept = quantize_module(net, SAMPLE_SHAPE, per_tensor(), x, fixed)
    assert not kept.settings.equalize
    assert kept.settings.observer.name == "min_max"


def test_rules_take_the_first_match_and_refuse_to_match_nothing(tmp_path: Path) -> None:
    net, x = plain_cnn(), images()
    rules = (LayerRule(layers="_4_weight", keep_float=True), LayerRule(operators=("Conv",), weights="int8"))
    made = quantize_module(net, SAMPLE_SHAPE, GENERIC, x, PtqSettings(tune=False, rules=rules))
    left = [d.operator for d in made.table.decisions if d.scheme is None and d.role == "activation"]
    assert left == ["Conv", "GlobalAveragePool"]  # what reads the float layer gains nothing from integers
    exported = float_onnx(deployed(made.graph), SAMPLE_SHAPE, tmp_path / "m.onnx")
    given = run_onnx(exported, {"input": x.numpy()}, optimized=False)[0]
    np.testing.assert_allclose(given, outputs(made.graph, x), atol=1e-4)
    nothing = PtqSettings(rules=(LayerRule(layers="_9.*", keep_float=True),))
    with pytest.raises(ConfigError, match=r"'_9.*' matches no layer"):
        quantize_module(net, SAMPLE_SHAPE, GENERIC, x, nothing)
    for wrong in ({"layers": "("}, {"layers": "a"}, {"keep_float": True, "weights": "int8"}):
        with pytest.raises(ValueError, match=r"regular expression|names types"):
            LayerRule.model_validate(wrong)


def test_mixed_precision_is_not_ignored_where_it_does_not_serve() -> None:
    dynamic = GENERIC.model_copy(update={"mode": Mode.DYNAMIC})
    with pytest.raises(ConfigError, match="is static, and the mode is dynamic"):
        quantize_module(
            plain_cnn(), SAMPLE_SHAPE, dynamic, images(), PtqSettings(mixed=MixedSettings(raise_to="float"))
        )


def test_calibration_set_must_hold_something() -> None:
    with pytest.raises(ConfigError, match="empty"):
        quantize_module(plain_cnn(), SAMPLE_SHAPE, GENERIC, torch.zeros(0, *SAMPLE_SHAPE))
    assert math.isfinite(sqnr_db(outputs(plain_cnn(), images()), outputs(plain_cnn(), images()) + 1e-3))
