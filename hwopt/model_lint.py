"""What a model promises to its callers, and what is wrong with it although it is valid; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.external_data import location_of

_QUANTIZE: Final = "QuantizeLinear"
_DEQUANTIZE: Final = "DequantizeLinear"
# What each rule says, for reports and for SARIF.
RULES: Final[Mapping[str, str]] = {
    "unsafe-input": "The file asks for what no model needs, or is no model; no runtime was given it",
    "scale-not-positive": "A quantization scale is zero, negative, NaN or infinite",
    "quantize-without-dequantize": "A quantized tensor is never brought back to its scale",
    "quantized-twice": "A tensor is quantized, brought back and quantized again with another scale",
    "zero-point-of-symmetric": "Weights have a zero point on a device that computes symmetric weights",
    "weights-not-finite": "Stored weights hold NaN or infinity",
    "float64": "Values of 64 bits, which few devices compute fast",
    "unused-weights": "Weights that no operator reads",
    "weights-elsewhere": "Weights lie in other files",
    "opset-too-new": "The operator set is newer than this ONNX library knows",
    "unnamed-batch": "The first axis of an input is fixed: the model takes one batch size",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a rule found."""

    rule: str
    level: Literal["error", "warning", "note"]
    text: str
    node: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"rule": self.rule, "level": self.level, "text": self.text, "node": self.node}


def contract(path: Path) -> dict[str, JSON]:
    """Inputs and outputs with types and shapes, operator sets, and who wrote the file."""
    model = onnx.load(path, load_external_data=False)
    stored = {i.name for i in model.graph.initializer}
    return {
        "inputs": [_value(v) for v in model.graph.input if v.name not in stored],
        "outputs": [_value(v) for v in model.graph.output],
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip()[:100],
        "external_data": any(location_of(t) for t in model.graph.initializer),
    }


def _value(value: onnx.ValueInfoProto) -> JSON:
    kind = value.type.tensor_type
    dims: list[JSON] = [
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
    ]
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, ValueError):
        dtype = "unknown"
    return {"name": value.name, "dtype": dtype, "shape": dims}


def lint(path: Path, hardware: HardwareProfile | None) -> list[Finding]:
    """Every finding, errors first."""
    model = onnx.load(path, load_external_data=False)
    found = [*_scales(model, hardware), *_pairs(model), *_weights(model), *_shape_of_things(model, hardware)]
    order = ["error", "warning", "note"]
    return sorted(found, key=lambda f: (order.index(f.level), f.rule, f.node))


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def _array(constants: Mapping[str, TensorProto], name: str) -> Array | None:
    tensor = constants.get(name)
    return None if tensor is None or location_of(tensor) else numpy_helper.to_array(tensor)


def _scales(model: ModelProto, hardware: HardwareProfile | None) -> Iterator[Finding]:
    constants = _constants(model)
    symmetric = hardware is not None and hardware.quantization.weights.symmetric
    for node in model.graph.node:
        if node.op_type not in {_QUANTIZE, _DEQUANTIZE} or len(node.input) < 2:
            continue
        scale = _array(constants, node.input[1])
        if scale is not None and not (np.isfinite(scale.astype(np.float64)).all() and (scale > 0).all()):
            yield Finding(
                rule="scale-not-positive", level="error", text=f"scale of {node.input[0]}", node=node.name
            )
        zero = _array(constants, node.input[2]) if len(node.input) > 2 and node.input[2] else None
        stored = node.op_type == _DEQUANTIZE and node.input[0] in constants
        if symmetric and stored and zero is not None and np.any(zero.astype(np.int64) != 0):
            yield Finding(
                rule="zero-point-of-symmetric",
                level="warning",
                text=f"{node.input[0]} has the zero point {zero.ravel()[0]}",
                node=node.name,
            )


def _pairs(model: ModelProto) -> Iterator[Finding]:
    readers: dict[str, list[NodeProto]] = {}
    makers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        if node.op_type != _QUANTIZE:
            continue
        users = readers.get(node.output[0], [])
        if not users and node.output[0] not in outputs:
            yield Finding(
                rule="quantize-without-dequantize", level="warning", text="nothing reads it", node=node.name
            )
        before = makers.get(node.input[0])
        if before is not None and before.op_type == _DEQUANTIZE and before.input[1:] != node.input[1:]:
            yield Finding(
                rule="quantized-twice",
                level="warning",
                text=f"{node.input[0]} was in codes already, on another scale",
                node=node.name,
            )


def _weights(model: ModelProto) -> Iterator[Finding]:
    read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    inside = any(a.HasField("g") for node in model.graph.node for a in node.attribute)
    for tensor in model.graph.initializer:
        if location_of(tensor):
            yield Finding(rule="weights-elsewhere", level="warning", text=tensor.name)
            continue
        if tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}:
            if not np.isfinite(numpy_helper.to_array(tensor)).all():
                yield Finding(rule="weights-not-finite", level="error", text=tensor.name)
            if tensor.data_type == TensorProto.DOUBLE and tensor.dims:
                yield Finding(rule="float64", level="warning", text=tensor.name)
        if tensor.name not in read and not inside:
            yield Finding(rule="unused-weights", level="note", text=tensor.name)


def _shape_of_things(model: ModelProto, hardware: HardwareProfile | None) -> Iterator[Finding]:
    known = onnx.defs.onnx_opset_version()
    for one in model.opset_import:
        if one.domain in {"", "ai.onnx"} and one.version > known:
            yield Finding(rule="opset-too-new", level="error", text=f"{one.version} > {known}")
    stored = {i.name for i in model.graph.initializer}
    is_fpga = hardware is not None and hardware.kind is DeviceKind.FPGA
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in stored and dims and dims[0].HasField("dim_value") and not is_fpga:
            yield Finding(
                rule="unnamed-batch", level="note", text=f"{value.name} takes {dims[0].dim_value} samples"
            )
