"""Post-training quantization of a torch module: the methods in the order in which they help each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from hwopt.core.canonical import JSON
from hwopt.core.hardware import LayerRule, Mode, QDType, QuantizationScheme, TensorScheme
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.adaround import adaround
from hwopt.quantization.assign import Assignment, Role
from hwopt.quantization.bias_correction import bias_shifts
from hwopt.quantization.eligible import overrides
from hwopt.quantization.equalize import equalize
from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import quiet_exporters, to_graph
from hwopt.quantization.insert import calibrate, fake_quantizers, insert, make_room_for_biases
from hwopt.quantization.mixed import mixed_rules
from hwopt.quantization.nodes import argument, constant
from hwopt.quantization.sensitivity import LayerNoise, layer_noise
from hwopt.quantization.settings import MixedSettings, PtqSettings
from hwopt.quantization.smooth import smooth
from hwopt.quantization.tidy import split_biases
from hwopt.quantization.tune import tuned

_BATCH = 64
_SCORED = 256  # samples that a way of quantizing is judged on


@dataclass(slots=True)
class Quantized:
    """A calibrated twin, and how it came about."""

    graph: fx.GraphModule
    reference: fx.GraphModule  # the float graph; its weights are equalized and smoothed where that was asked
    table: Assignment
    settings: PtqSettings  # as tuned
    facts: dict[str, JSON] = field(default_factory=dict)


def quantize_module(
    module: nn.Module,
    sample_shape: Sequence[int],
    scheme: QuantizationScheme,
    samples: Tensor,
    settings: PtqSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> Quantized:
    """The fake-quantized twin of ``module``, calibrated on ``samples`` (batch first).

    Raises:
        ConfigError: the calibration set is empty or constant, or a rule matches nothing.
        StageFailedError: ``torch.export`` cannot trace the module.
    """
    settings = settings or PtqSettings()
    batches = torch.split(samples, _BATCH) if len(samples) else ()
    plain = to_graph(module, sample_shape)
    if settings.mixed is not None and scheme.mode is not Mode.STATIC:
        raise ConfigError(
            f"mixed precision of torch modules is static, and the mode is {scheme.mode.value}",
            fix="use method ptq or qat, or export the float model and use `hwopt quantize MODEL.onnx`",
        )
    if scheme.mode is not Mode.STATIC or not len(samples):
        return _once(plain, scheme, batches, settings)
    facts: dict[str, JSON] = {}
    rules = list(settings.rules)
    if settings.mixed is not None:
        chosen, noise = _mix(plain, scheme, batches, settings, settings.mixed, samples)
        rules += chosen
        facts["sensitivity"] = [layer.to_json() for layer in noise]
        facts["raised_layers"] = [rule.layers.replace("\\", "") for rule in chosen]
        progress(f"mixed: {len(chosen)} of {len(noise)} layers raised to {settings.mixed.raise_to}")
        settings = settings.model_copy(update={"rules": tuple(rules)})
    with torch.no_grad():
        held = torch.cat(list(batches))[:_SCORED]
        exact = plain(held).numpy()

    def decibels(trial: PtqSettings) -> float:
        with torch.no_grad():
            return sqnr_db(exact, _once(plain, scheme, batches, trial).graph(held).numpy())

    if settings.tune:
        settings, score, trials = tuned(settings, decibels)
        facts["trials"] = trials
        progress(f"quantize: {len(trials)} ways tried, output at {score:.1f} dB")
    result = _once(plain, scheme, batches, settings)
    if settings.adaround is not None:
        facts["adaround_layers"] = adaround(
            result.reference, result.graph, samples, settings.adaround, seed=seed, progress=progress
        )
    result.facts = facts | result.facts
    return result


def _once(
    plain: fx.GraphModule,
    scheme: QuantizationScheme,
    batches: Sequence[Tensor],
    settings: PtqSettings,
) -> Quantized:
    """One way of quantizing; ``plain`` is left as it is."""
    facts: dict[str, JSON] = {}
    with quiet_exporters():  # copying torch.export's tree specs warns about itself
        reference = copy.deepcopy(plain)
    if scheme.bias == "apart":
        split_biases(reference)
    if settings.equalize:
        facts["equalized_pairs"] = equalize(FxNet(reference))
    if settings.smooth is not None:
        facts["smoothed_norms"] = smooth(FxNet(reference), batches, settings.smooth)
    graph, table = _calibrated(reference, scheme, settings.rules, batches, settings)
    if settings.bias_correction:
        facts["corrected_biases"] = _correct_biases(reference, graph, table, batches)
    return Quantized(graph, reference, table, settings, facts)


def _calibrated(
    reference: fx.GraphModule,
    scheme: QuantizationScheme,
    rules: Sequence[LayerRule],
    batches: Sequence[Tensor],
    settings: PtqSettings,
) -> tuple[fx.GraphModule, Assignment]:
    with quiet_exporters():  # copying torch.export's tree specs warns about itself
        graph = copy.deepcopy(reference)
    table = insert(graph, scheme, rules)
    calibrate(graph, batches, settings)
    return graph, table


def _mix(
    reference: fx.GraphModule,
    scheme: QuantizationScheme,
    batches: Sequence[Tensor],
    settings: PtqSettings,
    mixed: MixedSettings,
    samples: Tensor,
) -> tuple[list[LayerRule], list[LayerNoise]]:
    """Rules for the layers to raise, and the noise of all layers at the scheme's types."""
    if mixed.latency is not None:
        raise ConfigError(
            "a latency budget needs layers that can be timed, in an ONNX file",
            fix="export the float model and use `hwopt quantize MODEL.onnx`, or budget bytes",
        )
    graph, table = _calibrated(reference, scheme, settings.rules, batches, settings)
    held = samples[: mixed.samples]
    low = layer_noise(reference, graph, table, held)
    if mixed.raise_to == "float":
        high = [_silent(layer) for layer in low]
    else:
        wide = scheme.model_copy(
            update={
                "weights": scheme.weights.with_dtype(mixed.raise_to),
                "activations": _wider(scheme.activations, mixed.activations),
            }
        )
        graph, table = _calibrated(reference, wide, settings.rules, batches, settings)
        high = layer_noise(reference, graph, table, held)
    bits: tuple[QDType, QDType] = (scheme.weights.type, scheme.activations.type)
    ruled = overrides(FxNet(reference), settings.rules)  # what the user decided is not decided again
    open_layers = [i for i, layer in enumerate(low) if layer.node not in ruled]
    low, high = [low[i] for i in open_layers], [high[i] for i in open_layers]
    return mixed_rules(low, high, bits, mixed), low


def _silent(layer: LayerNoise) -> LayerNoise:
    return LayerNoise(layer=layer.layer, node=layer.node, noise=0.0, weights=layer.weights, macs=layer.macs)


def _wider(activations: TensorScheme, dtype: str | None) -> TensorScheme:
    return activations if dtype is None else activations.with_dtype(dtype)


def _correct_biases(
    reference: fx.GraphModule, graph: fx.GraphModule, table: Assignment, batches: Sequence[Tensor]
) -> int:
    quantized = {}
    with torch.no_grad():
        for node, grid in fake_quantizers(graph):
            weight = constant(graph, argument(node, 0))
            if weight is not None and isinstance(grid, FakeQuant):
                quantized[argument(node, 0).name] = grid(weight).numpy()
    weights = {d.tensor for d in table.decisions if d.role is Role.WEIGHT}
    shifts = bias_shifts(
        FxNet(reference), batches, {name: w for name, w in quantized.items() if name in weights}
    )
    nodes = {node.name: node for node in graph.graph.nodes}
    with torch.no_grad():
        for name, shift in shifts.items():
            value = constant(graph, nodes[name])
            if value is not None:
                value.add_(torch.from_numpy(shift))
    make_room_for_biases(graph)
    return len(shifts)
