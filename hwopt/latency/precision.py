"""Which layers to quantize so that the whole model is fastest: decided by timing it, on this machine.

Below some width integer arithmetic no longer pays for the conversions around it, and where that is depends
on the network, the batch and the processor. So layers are ordered by what they gain, and models with the
first 1, 2, 3, … of them in integer are timed as a whole. Latency does not depend on the values of weights:
an untrained network answers as well as a trained one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from torch import nn

from hwopt.core.canonical import JSON
from hwopt.core.hardware import LayerRule, QuantizationScheme
from hwopt.errors import StageFailedError
from hwopt.latency.bench import Bench
from hwopt.latency.costs import exported
from hwopt.quantization.eligible import overrides
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import to_graph
from hwopt.quantization.layer_time import layer_times
from hwopt.quantization.net import WEIGHTED, Net
from hwopt.quantization.onnx_net import Batch, OnnxNet
from hwopt.quantization.onnx_ptq import quantize_onnx
from hwopt.quantization.settings import PtqSettings

_TRIED: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_QUICK: Final = PtqSettings(tune=False)  # ranges decide about accuracy, not about time


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Layers in the order of the network, each to run in integer or in float."""

    integer: tuple[bool, ...]
    ratio: float  # latency over that of the same network in float
    trials: tuple[tuple[int, float], ...]  # (layers in integer, ratio) of all that were timed

    def rules(self, names: Sequence[str]) -> tuple[LayerRule, ...]:
        """A rule for the layers that stay in float; ``names`` are those of the weights, in order."""
        kept = [re.escape(name) for name, integer in zip(names, self.integer, strict=True) if not integer]
        return (LayerRule(layers="|".join(kept), keep_float=True),) if kept else ()

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "integer_layers": sum(self.integer),
            "layers": len(self.integer),
            "ratio_to_float": self.ratio,
            "trials": [{"integer_layers": count, "ratio_to_float": ratio} for count, ratio in self.trials],
            "tier": "measured",
        }


def weighted(net: Net) -> list[tuple[str, str]]:
    """Name of the weight and type of every layer with weights, in order."""
    return [(str(op.weight), str(op.kind)) for op in net.ops if op.kind in WEIGHTED and op.weight]


def layer_names(module: nn.Module, sample_shape: Sequence[int]) -> list[str]:
    """Names of a module's weights as rules know them, in order."""
    return [name for name, _ in weighted(FxNet(to_graph(module, sample_shape)))]


def fastest_precision(
    model: onnx.ModelProto,
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    bench: Bench,
    never: Collection[int] = (),
) -> Precision:
    """The fastest of the versions of a float model with one or more layers in integer.

    Args:
        batches: a few samples, for ranges.
        never: layers, counted from 0, that stay in float whatever they gain.
    Returns:
        the fastest of those that were tried; its ratio is measured again, because the least of several
        measurements is a lucky one.
    Raises:
        StageFailedError: no layer can be quantized, or the runtime's layers are not those of the file.
    """
    layers = weighted(OnnxNet(_copied(model)))
    names = [name for name, _ in layers]
    if not layers:
        raise StageFailedError("the model has no layer with weights", fix="there is nothing to quantize")
    call = {model.graph.input[0].name: bench.sample}

    def version(integer: set[int]) -> onnx.ModelProto:
        kept = [re.escape(name) for index, name in enumerate(names) if index not in integer]
        rules = (LayerRule(layers="|".join(kept), keep_float=True),) if kept else ()
        return quantize_onnx(model, scheme, batches, _QUICK.model_copy(update={"rules": rules})).model

    allowed = set(range(len(names))) - set(never)
    if not allowed:
        raise StageFailedError("every layer is to stay in float", fix="drop some of the rules")
    everything = version(allowed)
    slow, _ = layer_times(model, call, layers)
    fast, _ = layer_times(everything, call, layers)
    gain = [slow.get(name, 0.0) - fast.get(name, 0.0) for name in names]
    order = sorted(allowed, key=lambda index: -gain[index])
    counts = sorted({n for n in (*_TRIED, sum(gain[i] > 0 for i in order)) if 0 < n < len(order)})
    chosen = [set(order[:count]) for count in counts] + [allowed]
    models = [version(integer) for integer in chosen[:-1]] + [everything]
    found = bench.ratios(model, models)
    best = min(range(len(found)), key=lambda index: found[index])
    return Precision(
        integer=tuple(index in chosen[best] for index in range(len(names))),
        ratio=bench.confirm(model, models[best]).estimate,
        trials=tuple((len(integer), ratio) for integer, ratio in zip(chosen, found, strict=True)),
    )


def module_precision(
    module: nn.Module,
    sample_shape: Sequence[int],
    scheme: QuantizationScheme,
    batches: Sequence[Batch],
    bench: Bench,
    rules: Sequence[LayerRule] = (),
) -> tuple[Precision, tuple[LayerRule, ...]]:
    """The same for a torch module, with the rules that its quantization needs beside the user's ``rules``.

    Raises:
        StageFailedError: the exported file has other layers than the module.
    """
    net = FxNet(to_graph(module, sample_shape))
    ruled = {name for name, rule in overrides(net, rules).items() if rule.keep_float}
    never = [
        index
        for index, op in enumerate(op for op in net.ops if op.kind in WEIGHTED and op.weight)
        if op.name in ruled
    ]
    found = fastest_precision(exported(module, sample_shape), scheme, batches, bench, never)
    names = [name for name, _ in weighted(net)]
    if len(names) != len(found.integer):
        raise StageFailedError(
            f"the exported model has {len(found.integer)} layers with weights, and the network {len(names)}",
            fix="name the layers to leave in float yourself: rules",
        )
    return found, found.rules(names)


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The reader tidies its model; the caller's stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
