"""Quantize a float ONNX model that has no torch source: static, dynamic or weight-only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

from hwopt.core.canonical import JSON
from hwopt.core.hardware import LayerRule, Mode, QuantizationScheme
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError, StageFailedError
from hwopt.numerics import scales
from hwopt.quantization.assign import Assignment, Role, assign
from hwopt.quantization.bias_correction import bias_shifts
from hwopt.quantization.eligible import overrides
from hwopt.quantization.equalize import equalize
from hwopt.quantization.fit import rows_of, weight_scale
from hwopt.quantization.layer_time import latency_ratio, layer_times
from hwopt.quantization.mixed import mixed_rules
from hwopt.quantization.net import WEIGHTED, Array
from hwopt.quantization.onnx_export import passes_for_runtimes
from hwopt.quantization.onnx_net import Batch, OnnxNet, samples_of
from hwopt.quantization.onnx_passes import split_biases
from hwopt.quantization.onnx_write import calibrate_onnx, from_rows, write_qdq
from hwopt.quantization.sensitivity import LayerNoise
from hwopt.quantization.settings import MixedSettings, PtqSettings
from hwopt.quantization.smooth import smooth
from hwopt.quantization.tune import tuned

_SCORED = 256  # samples that a way of quantizing is judged on


@dataclass(slots=True)
class QuantizedOnnx:
    """The model with its Q/DQ pairs, and how it came about."""

    model: onnx.ModelProto
    table: Assignment
    settings: PtqSettings  # as tuned
    facts: dict[str, JSON] = field(default_factory=dict)


def quantize_onnx(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings | None = None,
    *,
    progress: Progress = lambda text: None,
) -> QuantizedOnnx:
    """The quantized version of a model that ``onnx_net.read`` gave; ``model`` is left as it is.

    Args:
        batches: inputs by name, one mapping a call; not needed for dynamic and weight-only quantization.
    Raises:
        ConfigError: samples that do not fit, are empty, constant or hold NaN; a rule that matches nothing.
        StageFailedError: no operator of the model runs in integer under the scheme.
    """
    settings = settings or PtqSettings()
    facts: dict[str, JSON] = {}
    if scheme.mode is Mode.WEIGHT_ONLY and (scheme.weights.block or scheme.weights.type.bits <= 4):
        model = _for_blocks(model)
    if scheme.mode is not Mode.STATIC:
        if settings.mixed is not None:
            settings = _with_mixed(model, scheme, batches, settings, settings.mixed, facts, progress)
        result = _once(model, scheme, batches, settings)
        result.facts = facts | result.facts
        return result
    if settings.adaround is not None:
        raise ConfigError(
            "learned rounding needs gradients, and an ONNX model has none",
            fix="remove adaround, or quantize the torch model",
        )
    held = _first(batches, _SCORED)
    exact = _run(model, held) if held else []
    if settings.mixed is not None:
        settings = _with_mixed(model, scheme, batches, settings, settings.mixed, facts, progress)

    def decibels(trial: PtqSettings) -> float:
        return output_decibels(exact, _run(_once(model, scheme, batches, trial).model, held))

    if settings.tune and held:
        settings, score, trials = tuned(settings, decibels)
        facts["trials"] = trials
        progress(f"quantize: {len(trials)} ways tried, output at {score:.1f} dB")
    result = _once(model, scheme, batches, settings)
    result.facts = facts | result.facts
    return result


def _for_blocks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scales a block and 4-bit types came with opset 21; the operators around are converted along."""
    try:
        converted = onnx.version_converter.convert_version(model, 21)
    except Exception as error:  # the converter's C++ exceptions have no common type
        raise StageFailedError(
            "scales a block and 4 bits need opset 21, and the model does not convert: "
            + str(error).splitlines()[0],
            fix="use int8 without block, or export the model with opset 21",
        ) from error
    return onnx.shape_inference.infer_shapes(converted)


def _with_mixed(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
    mixed: MixedSettings,
    facts: dict[str, JSON],
    progress: Progress,
) -> PtqSettings:
    """The settings with a rule for each layer that is raised."""
    if not batches:
        raise ConfigError("mixed precision needs samples to measure layers on", fix="give --calibration")
    rules, noise = _mix(model, scheme, batches, settings, mixed)
    if mixed.latency is not None:
        rules, facts["latency"] = _within(mixed.latency, model, scheme, batches, settings, rules)
    facts["sensitivity"] = [layer.to_json() for layer in noise]
    facts["raised_layers"] = [rule.layers.replace("\\", "") for rule in rules]
    progress(f"mixed: {len(rules)} of {len(noise)} layers raised to {mixed.raise_to}")
    return settings.model_copy(update={"rules": (*settings.rules, *rules)})


def output_decibels(exact: Sequence[Array], given: Sequence[Array]) -> float:
    """Signal-to-noise ratio of the worst output, dB; exact outputs do not count."""
    values = [scales.sqnr_db(a, b) for a, b in zip(exact, given, strict=True) if a.dtype.kind == "f"]
    finite = [v for v in values if np.isfinite(v)]
    return min(finite) if finite else float("inf")


def _once(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
) -> QuantizedOnnx:
    facts: dict[str, JSON] = {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if scheme.bias == "apart":
        split_biases(copy.graph)
    net = OnnxNet(copy)
    if settings.equalize:
        facts["equalized_pairs"] = equalize(net)
    if settings.smooth is not None:
        facts["smoothed_norms"] = smooth(net, batches, settings.smooth)
    table = assign(net, scheme, settings.rules)
    if not any(d.scheme is not None for d in table.decisions):
        reasons = {f"{d.operator}: {d.rule}" for d in table.decisions}
        raise StageFailedError(
            "nothing in this model can be quantized: "
            + ("; ".join(sorted(reasons)[:4]) or "it has no convolution and no product with weights"),
            fix="convert half-precision weights to float32, or choose another --method",
        )
    grids = calibrate_onnx(net, table, scheme, batches, settings)
    if settings.bias_correction and scheme.mode is Mode.STATIC:
        facts["corrected_biases"] = _correct_biases(net, table, scheme, batches, settings)
    written = write_qdq(net, table, scheme, grids, settings)
    passes_for_runtimes(written)
    return QuantizedOnnx(written, table, settings, facts)


def _correct_biases(
    net: OnnxNet,
    table: Assignment,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
) -> int:
    rounded: dict[str, Array] = {}
    for d in table.decisions:
        values = net.constant(d.tensor) if d.role is Role.WEIGHT and d.scheme else None
        if values is None or d.scheme is None:
            continue
        pow2 = scheme.scale == "power_of_two"
        scale = weight_scale(values, d.scheme, d.axis, d.in_axis, pow2=pow2, reach=settings.weight_range)
        rows = rows_of(values, d.axis, d.in_axis, d.scheme.block)
        back = scales.fake_quantize(rows, scale[:, None], 0, d.scheme.codes)
        rounded[d.tensor] = from_rows(back, values.shape, d).astype(np.float32)
    shifts = bias_shifts(net, batches, rounded)
    for name, shift in shifts.items():
        bias = net.constant(name)
        if bias is not None:
            net.set_constant(name, bias + shift.reshape(bias.shape))
    return len(shifts)


def _mix(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
    mixed: MixedSettings,
) -> tuple[list[LayerRule], list[LayerNoise]]:
    """Rules for the layers to raise, and the noise of each layer at the scheme's types."""
    if mixed.bit_operations is not None:
        raise ConfigError(
            "bit_operations are counted for torch models only", fix="set mixed.layers or mixed.bytes"
        )
    low = _noise(model, scheme, batches, settings, mixed.samples)
    if mixed.raise_to == "float":
        high = [LayerNoise(layer=n.layer, node=n.node, noise=0.0, weights=n.weights, macs=0) for n in low]
    else:
        activations = scheme.activations
        if mixed.activations is not None:
            activations = activations.with_dtype(mixed.activations)
        wide = {"weights": scheme.weights.with_dtype(mixed.raise_to), "activations": activations}
        high = _noise(model, scheme.model_copy(update=wide), batches, settings, mixed.samples)
    seconds = None
    if mixed.latency is not None:
        seconds = _costs(model, scheme, batches, settings, mixed, [layer.layer for layer in low])
    bits = (scheme.weights.type, scheme.activations.type)
    return mixed_rules(low, high, bits, mixed, seconds), low


def _costs(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
    mixed: MixedSettings,
    layers: Sequence[str],
) -> tuple[list[float], float]:
    """Seconds that raising each layer to float costs, and seconds of the uniform version, on this machine."""
    if mixed.raise_to != "float":
        raise ConfigError(
            f"a latency budget is about integer and float; raise_to is {mixed.raise_to}",
            fix="raise_to: float",
        )
    call = _single(model, batches[0])
    uniform = _once(model, scheme, batches, settings.model_copy(update={"mixed": None})).model
    whole_net = OnnxNet(model)
    weighted = [(str(op.weight), str(op.kind)) for op in whole_net.ops if op.kind in WEIGHTED and op.weight]
    fast, whole = layer_times(uniform, call, weighted)
    slow, _ = layer_times(model, call, weighted)
    return [slow.get(layer, 0.0) - fast.get(layer, 0.0) for layer in layers], whole


def _within(
    limit: float,
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
    rules: list[LayerRule],
) -> tuple[list[LayerRule], JSON]:
    """The rules, best first, as far as the whole model keeps the limit when it is measured.

    Layers that run in float between integer ones cost conversions that no single layer shows.
    """
    plain = settings.model_copy(update={"mixed": None})
    call = _single(model, batches[0])
    uniform = _once(model, scheme, batches, plain).model
    while True:
        trial = plain.model_copy(update={"rules": (*settings.rules, *rules)})
        reached = latency_ratio(_once(model, scheme, batches, trial).model, uniform, call) if rules else 1.0
        if reached <= limit or not rules:
            return rules, {"limit": limit, "measured": reached, "tier": "measured"}
        rules = rules[:-1]


def _single(model: onnx.ModelProto, batch: Batch) -> dict[str, Array]:
    return {name: value[:1] if _is_free(model, name) else value for name, value in batch.items()}


def _is_free(model: onnx.ModelProto, name: str) -> bool:
    """Whether the first axis of an input is a free batch."""
    dims = next(i for i in model.graph.input if i.name == name).type.tensor_type.shape.dim
    return len(dims) > 0 and not dims[0].HasField("dim_value")


def _noise(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    settings: PtqSettings,
    samples: int,
) -> list[LayerNoise]:
    """Every weighted layer quantized alone; one session a layer."""
    held = _first(batches, samples)
    exact = _run(model, held)
    net = OnnxNet(model)
    table = assign(net, scheme, settings.rules)
    ruled = overrides(net, settings.rules)
    layers = [
        d for d in table.decisions if d.role is Role.WEIGHT and d.operator in WEIGHTED and d.node not in ruled
    ]
    alone = settings.model_copy(update={"mixed": None, "bias_correction": False})
    result = []
    for d in layers:
        others = "|".join(re.escape(o.node) for o in layers if o.node != d.node)
        rules = (LayerRule(layers=others, keep_float=True),) if others else ()
        only = alone.model_copy(update={"rules": (*settings.rules, *rules)})
        given = _run(_once(model, scheme, held, only).model, held)
        values = net.constant(d.tensor)
        result.append(
            LayerNoise(
                layer=d.tensor,
                node=d.node,
                noise=10 ** (-min(output_decibels(exact, given), 300.0) / 10),
                weights=0 if values is None else values.size,
                macs=0,
            )
        )
    return result


def _first(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """As many whole batches as hold ``samples``, at least one."""
    kept: list[Batch] = []
    count = 0
    for batch in batches:
        if count >= samples:
            break
        kept.append(batch)
        count += samples_of(batch)
    return kept


def _run(model: onnx.ModelProto, batches: Sequence[Mapping[str, Any]]) -> list[Array]:
    """Outputs over all batches, as written: no runtime's optimization is part of the error."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    try:
        outputs = [session.run(None, dict(batch)) for batch in batches]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        names = ", ".join(i.name for i in model.graph.input)
        raise ConfigError(
            f"the calibration samples do not fit the model: {str(error).splitlines()[0]}",
            fix=f"give an array for each input: {names}",
        ) from error
    return [np.concatenate([np.ravel(o[i]) for o in outputs]) for i in range(len(outputs[0]))]
