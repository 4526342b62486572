"""Apply the table to an ONNX model: calibrate it in ONNX Runtime, then put Q/DQ pairs into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from hwopt.core.hardware import QDType, QuantizationScheme, TensorScheme
from hwopt.errors import ConfigError
from hwopt.numerics import scales
from hwopt.numerics.observers import Observer
from hwopt.quantization.assign import Assignment, Decision, Role
from hwopt.quantization.fit import activation_grid, new_observer, rows_of, weight_scale
from hwopt.quantization.net import Op
from hwopt.quantization.onnx_lstm import dynamic_lstm
from hwopt.quantization.onnx_net import Batch, OnnxNet
from hwopt.quantization.onnx_passes import fresh, names_of, remove_unused
from hwopt.quantization.settings import PtqSettings

Grid = tuple[float, int]  # scale and zero point
_BIAS_ROOM = 2.0**30  # greatest code of a bias; the rest of int32 is the products'


def calibrate_onnx(
    net: OnnxNet,
    table: Assignment,
    scheme: QuantizationScheme,
    batches: Iterable[Batch],
    settings: PtqSettings | None = None,
) -> dict[str, Grid]:
    """Scale and zero point of every activation of the table, from the float model's values.

    Memory does not grow with the number of samples.

    Raises:
        ConfigError: an empty calibration set, one that does not fit the model, or one with NaN.
    """
    wanted = [d for d in table.decisions if d.role is Role.ACTIVATION and d.scheme and not d.dynamic]
    roots = [d for d in wanted if d.shares is None]
    if not roots:
        return {}
    observers: dict[str, Observer] = {
        d.tensor: new_observer((settings or PtqSettings()).observer) for d in roots
    }

    def see(name: str, value: npt.NDArray[np.float32]) -> None:
        try:
            observers[name].add(value)
        except ValueError as error:
            raise ConfigError(
                f"{error}, at the tensor {name!r}", fix="remove the samples that hold NaN or infinity"
            ) from None

    samples = net.observe(batches, list(observers), see)
    if samples == 0:
        raise ConfigError(
            "the calibration set is empty", fix="give at least one sample; 256 is a good number"
        )
    inputs = {i.name for i in net.model.graph.input}
    grids: dict[str, Grid] = {}
    for decision in roots:
        seen = observers[decision.tensor]
        if decision.tensor in inputs and seen.low == seen.high:
            raise ConfigError(
                f"every calibration sample of {decision.tensor!r} holds the single value {seen.low:g}",
                fix="calibrate on real samples",
            )
        if decision.scheme is not None:
            grids[decision.tensor] = activation_grid(
                seen, decision.scheme, pow2=scheme.scale == "power_of_two", ceiling=decision.ceiling
            )
    for decision in wanted:
        if decision.shares is not None:
            grids[decision.tensor] = grids[decision.shares]
    return grids


def write_qdq(
    net: OnnxNet,
    table: Assignment,
    scheme: QuantizationScheme,
    grids: Mapping[str, Grid],
    settings: PtqSettings | None = None,
) -> onnx.ModelProto:
    """The quantized model; ``net`` is left as it is."""
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    writer = _Writer(model, net, scheme, grids, settings or PtqSettings())
    ops = {op.name: op for op in net.ops}
    activations = [d for d in table.decisions if d.role is Role.ACTIVATION and d.scheme]
    for decision in table.decisions:
        if decision.role is Role.WEIGHT and decision.scheme is not None:
            if decision.operator == "LSTM":
                dynamic_lstm(model, ops[decision.node])
            else:
                writer.weight(decision, [ops[n] for n in table.chosen if ops[n].weight == decision.tensor])
    for decision in table.decisions:
        if decision.role is Role.BIAS and decision.scheme is not None:
            writer.bias(decision, ops[decision.node])
    for decision in activations:
        writer.activation(decision, table.readers.get(decision.tensor))
    writer.finish()
    return model


def container(scheme: TensorScheme) -> npt.DTypeLike:
    """The ONNX type that holds the codes: 1 to 8 bits live in (u)int8."""
    dtype: QDType = scheme.type
    names = {(True, True): "int8", (False, True): "uint8", (True, False): "int16", (False, False): "uint16"}
    return np.dtype(names[(dtype.signed, dtype.bits <= 8)])


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        net: OnnxNet,
        scheme: QuantizationScheme,
        grids: Mapping[str, Grid],
        settings: PtqSettings,
    ) -> None:
        self.settings = settings
        self.model, self.net, self.scheme, self.grids = model, net, scheme, grids
        self.nodes = {node.name: node for node in model.graph.node}
        self.names = names_of(model.graph)
        self.front: list[onnx.NodeProto] = []  # in front of everything
        self.after: dict[str, list[onnx.NodeProto]] = {}  # behind the node that writes a tensor
        self.weight_scales: dict[str, Any] = {}

    def store(self, name: str, value: Any) -> str:
        name = fresh(self.names, name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], name: str) -> onnx.NodeProto:
        """A node with a name of its own."""
        return helper.make_node(op, inputs, outputs, fresh(self.names, name))

    def dequantized(self, name: str, inputs: list[str], attributes: dict[str, Any]) -> str:
        """A stored constant as float; the name of the tensor."""
        target = fresh(self.names, f"{name}_dq")
        self.front.append(helper.make_node("DequantizeLinear", inputs, [target], target, **attributes))
        return target

    def weight(self, decision: Decision, users: list[Op]) -> None:
        """Codes in place of floats, and a DequantizeLinear."""
        scheme = decision.scheme
        values = self.net.constant(decision.tensor)
        if scheme is None or values is None:
            raise AssertionError(f"{decision.tensor} is no constant")
        pow2 = self.scheme.scale == "power_of_two"
        scale = weight_scale(
            values,
            scheme,
            decision.axis,
            decision.in_axis,
            pow2=pow2,
            reach=self.settings.weight_range,
        )
        for op in users:
            scale = self._with_room(op, scale)
        scale = scale.astype(np.float32)
        self.weight_scales[decision.tensor] = scale
        rows = rows_of(values, decision.axis, decision.in_axis, scheme.block)
        codes = scales.quantize(rows, scale.astype(np.float64)[:, None], 0, scheme.codes)
        codes = from_rows(codes, values.shape, decision).astype(container(scheme))
        stored = scale if decision.axis is not None else scale.reshape(())
        attributes: dict[str, Any] = {} if decision.axis is None else {"axis": decision.axis}
        if scheme.block is not None and decision.axis is not None and decision.in_axis is not None:
            shape = list(values.shape)
            shape[decision.in_axis] //= scheme.block
            stored = scale.reshape(shape[decision.axis], shape[decision.in_axis])
            stored = stored if decision.axis < decision.in_axis else np.ascontiguousarray(stored.T)
            attributes = {"axis": decision.in_axis, "block_size": scheme.block}
        name = decision.tensor
        inputs = [
            self.store(f"{name}_codes", codes),
            self.store(f"{name}_scale", stored),
            self.store(f"{name}_zero", np.zeros(stored.shape, codes.dtype)),
        ]
        target = self.dequantized(name, inputs, attributes)
        for op in users:
            _rewire(self.nodes[op.name], name, target)

    def _with_room(self, op: Op, scale: Any) -> Any:
        """Scales of channels whose weights are so small that int32 could not hold their bias, raised."""
        bias = self.net.constant(op.bias) if op.bias else None
        grid = self.grids.get(op.inputs[0]) if op.inputs else None
        if bias is None or grid is None or self.scheme.bias != "int32" or len(scale) not in {1, bias.size}:
            return scale
        least = np.abs(bias.ravel().astype(np.float64)) / (grid[0] * _BIAS_ROOM)
        if self.scheme.scale == "power_of_two":
            least = np.exp2(np.ceil(np.log2(np.maximum(least, 1e-300))))
        return np.maximum(scale, least if len(scale) == bias.size else least.max())

    def bias(self, decision: Decision, op: Op) -> None:
        """int32 at input scale × weight scale."""
        values = self.net.constant(decision.tensor)
        if values is None or op.weight is None or op.weight not in self.weight_scales:
            return
        scale = (self.grids[op.inputs[0]][0] * self.weight_scales[op.weight].astype(np.float64)).astype(
            np.float32
        )
        limit = 2.0**31 - 128
        codes = np.clip(np.rint(values.astype(np.float64) / scale), -limit, limit).astype(np.int32)
        stored = scale if len(scale) > 1 else scale.reshape(())
        name = f"{decision.tensor}_{op.name}"
        inputs = [
            self.store(f"{name}_codes", codes),
            self.store(f"{name}_scale", stored),
            self.store(f"{name}_zero", np.zeros(stored.shape, np.int32)),
        ]
        attributes: dict[str, Any] = {"axis": 0} if stored.ndim else {}
        _rewire(self.nodes[op.name], decision.tensor, self.dequantized(name, inputs, attributes), slot=2)

    def activation(self, decision: Decision, only: set[str] | None) -> None:
        """A Q/DQ pair behind the tensor; what leaves the network under its name is the quantized value."""
        name, scheme = decision.tensor, decision.scheme
        if scheme is None:
            return
        source, target = name, fresh(self.names, f"{name}_dq")
        readers = [n for n in self.model.graph.node if name in n.input and (only is None or n.name in only)]
        if only is None and name in self.net.outputs:
            source, target = fresh(self.names, f"{name}_float"), name
            for node in self.model.graph.node:
                node.output[:] = [source if o == name else o for o in node.output]
                node.input[:] = [source if i == name else i for i in node.input]
                _rewire_inside(node, name, source)
        for node in readers:
            _rewire(node, source, target)
        if only is None:  # a branch that reads the float would keep the runtime from merging the operators
            for node in self.model.graph.node:
                _rewire_inside(node, source, target)
        made: list[onnx.NodeProto] = []
        if decision.dynamic:
            outputs = [fresh(self.names, f"{name}_{part}") for part in ("codes", "scale", "zero")]
            made.append(self.node("DynamicQuantizeLinear", [source], outputs, f"{name}_q"))
        else:
            scale, zero = self.grids[name]
            dtype = container(scheme)
            info, (low, high) = np.iinfo(dtype), scheme.codes
            grid = [
                self.store(f"{name}_scale", np.float32(scale)),
                self.store(f"{name}_zero", np.asarray(zero, dtype)),
            ]
            entry = source
            if (low, high) != (info.min, info.max):
                ends = [
                    self.store(f"{name}_{end}", np.float32((code - zero) * np.float32(scale)))
                    for end, code in (("low", low), ("high", high))
                ]
                entry = fresh(self.names, f"{name}_clip")
                made.append(self.node("Clip", [source, *ends], [entry], f"{name}_clipping"))
            outputs = [fresh(self.names, f"{name}_codes")]
            made.append(self.node("QuantizeLinear", [entry, *grid], outputs, f"{name}_q"))
            outputs = [outputs[0], *grid]
        made.append(self.node("DequantizeLinear", outputs, [target], f"{name}_dequantize"))
        self.after[source] = made

    def finish(self) -> None:
        """Put the new nodes where their inputs are known."""
        graph = self.model.graph
        nodes = [*self.front]
        for value in graph.input:
            nodes += self.after.get(value.name, [])
        for node in graph.node:
            nodes.append(node)
            for output in node.output:
                nodes += self.after.get(output, [])
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        del graph.value_info[:]
        remove_unused(graph)


def from_rows(codes: Any, shape: tuple[int, ...], decision: Decision) -> Any:
    """The inverse of ``fit.rows_of``."""
    axis, in_axis = decision.axis, decision.in_axis
    if axis is None:
        return codes.reshape(shape)
    if decision.scheme is None or decision.scheme.block is None or in_axis is None:
        rest = [size for i, size in enumerate(shape) if i != axis]
        return np.moveaxis(codes.reshape(shape[axis], *rest), 0, axis)
    return np.moveaxis(codes.reshape(shape[axis], shape[in_axis]), (0, 1), (axis, in_axis))


def _rewire(node: onnx.NodeProto, old: str, new: str, slot: int | None = None) -> None:
    node.input[:] = [
        new if name == old and (slot is None or i == slot) else name for i, name in enumerate(node.input)
    ]


def _rewire_inside(node: onnx.NodeProto, old: str, new: str) -> None:
    """What branches and loops read of the graph around them."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            if any(old in inner.output for inner in graph.node):
                continue  # a name of its own
            for inner in graph.node:
                _rewire(inner, old, new)
                _rewire_inside(inner, old, new)
            for output in graph.output:
                if output.name == old:
                    output.name = new
