"""An ONNX model as the rules see it.

Reading it tidies it first: ONNX Runtime's own basic optimization folds constants and batch norm and removes
what does nothing; inputs that the caller fixes disappear, and with them the branches that they choose
between. Operators inside branches and loops are not looked into; they stay in float, and the table says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, shape_inference

from hwopt.errors import ConfigError, StageFailedError
from hwopt.quantization import onnx_passes as passes
from hwopt.quantization.net import Array, Observer, Op

_LEAST_OPSET: Final = 13  # per-channel scales
_LEAST_IR: Final = 8  # initializers that are no inputs came with 4
_QUANTIZED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
)
Batch = Mapping[str, Array]


def read(path: Path, fixed: Mapping[str, int | float] | None = None) -> onnx.ModelProto:
    """A checked, tidied float model.

    Args:
        path: the file, which ``model_check`` has looked at.
        fixed: inputs that always hold one value, such as a sample rate; they stop being inputs.
    Raises:
        ConfigError: an input to fix that the model does not have; a model that is quantized already.
        StageFailedError: ONNX Runtime refuses the model.
    """
    model = onnx.load(path)
    found = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if found:
        raise ConfigError(
            f"the model is quantized already: it holds {', '.join(found)}",
            where=str(path),
            fix="give the float model",
        )
    stored = {i.name for i in model.graph.initializer}
    for value in [i for i in model.graph.input if i.name in stored]:
        model.graph.input.remove(value)  # weights that old exporters list as inputs too
    model.ir_version = max(model.ir_version, _LEAST_IR)
    passes.name_nodes(model.graph)
    _fix_inputs(model, fixed or {}, path)
    version = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if version < _LEAST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, 17)
        except Exception as error:  # the converter's C++ exceptions have no common type
            raise StageFailedError(
                f"the model has opset {version}, and per-channel scales need {_LEAST_OPSET}; converting it "
                f"failed: {str(error).splitlines()[0]}",
                where=str(path),
                fix="export the model anew with opset 17 or later",
            ) from error
    model = _optimized(model, path)
    needed = {node.domain for node in _all_nodes(model.graph)} | {""}
    kept = [o for o in model.opset_import if o.domain in needed]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    passes.name_nodes(model.graph)
    passes.own_constants(model.graph)
    return shape_inference.infer_shapes(model)


def signature(
    model: onnx.ModelProto,
) -> tuple[dict[str, tuple[int | None, ...]], dict[str, np.dtype[Any]]]:
    """Shapes (None where an axis is free) and types of the inputs."""
    shapes, dtypes = {}, {}
    for value in model.graph.input:
        tensor_type = value.type.tensor_type
        shapes[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim
        )
        dtypes[value.name] = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
    return shapes, dtypes


def samples_of(batch: Batch) -> int:
    """How many samples a call holds: the greatest first axis."""
    return max((np.shape(value)[0] for value in batch.values() if np.ndim(value)), default=1)


def _fix_inputs(model: onnx.ModelProto, fixed: Mapping[str, int | float], path: Path) -> None:
    for name, value in fixed.items():
        given = next((i for i in model.graph.input if i.name == name), None)
        if given is None:
            raise ConfigError(
                f"the model has no input {name!r}",
                where=str(path),
                fix=f"its inputs are {', '.join(i.name for i in model.graph.input)}",
            )
        tensor_type = given.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        if dtype.kind in "iu" and value != int(value):
            raise ConfigError(
                f"{name} is {value}, and the model takes {dtype}", where=str(path), fix="give a whole number"
            )
        model.graph.input.remove(given)
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, dtype), name))


def _optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "basic.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        # Padding merged into convolutions and the like is wanted; the kernel-specific levels are not.
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise StageFailedError(
                f"ONNX Runtime does not load the model: {str(error).splitlines()[0]}", where=str(path)
            ) from error
        return onnx.load(target)


def _all_nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(inner)


class OnnxNet:
    """The view of a tidied float model; changes go into ``model``."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self._constants = {i.name: i for i in graph.initializer}
        for node in graph.node:  # small ones that the optimizer leaves as nodes
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._types = {
            v.name: v.type.tensor_type
            for v in (*graph.input, *graph.output, *graph.value_info)
            if v.type.HasField("tensor_type")
        }
        passes.name_nodes(graph)
        _flatten_biases(graph, self._constants)
        self.outputs = frozenset(o.name for o in graph.output)
        self.ops: list[Op] = [self._op(node) for node in graph.node if node.op_type != "Constant"]

    def constant(self, name: str) -> Array | None:
        """An initializer's values."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def set_constant(self, name: str, value: Array) -> None:
        """Replace an initializer's values."""
        shape, dtype = list(self._constants[name].dims), self._constants[name].data_type
        if list(value.shape) != shape:
            raise ValueError(f"{name} has the shape {shape}, not {list(value.shape)}")
        dtype_np = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        self._constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype_np), name))

    def scale(self, tensor: str, factor: Array, users: Sequence[str]) -> None:
        """An operator of its own in front of the readers."""
        graph = self.model.graph
        name = f"{tensor}_smoothing"
        graph.initializer.append(numpy_helper.from_array(np.asarray(factor, np.float32), name))
        made = onnx.helper.make_node("Mul", [tensor, name], [f"{tensor}_smooth"], f"{tensor}_smooth")
        place = next(i for i, node in enumerate(graph.node) if tensor in node.output)
        graph.node.insert(place + 1, made)
        for node in graph.node:
            if node.name in users:
                node.input[:] = [f"{tensor}_smooth" if given == tensor else given for given in node.input]
        self.__init__(self.model)  # type: ignore[misc]

    def observe(self, batches: Iterable[Batch], names: Sequence[str], see: Observer) -> int:
        """Run in ONNX Runtime with the named tensors as further outputs."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        inputs = [i.name for i in copy.graph.input]
        inner = [name for name in names if name not in self.outputs and name not in inputs]
        for name in inner:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # As written, so that no tensor that is looked at is fused away.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        asked = [name for name in names if name not in inputs]
        samples = 0
        for batch in batches:
            try:
                values = session.run(asked or None, dict(batch))
            except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
                raise ConfigError(
                    f"the calibration samples do not fit the model: {str(error).splitlines()[0]}",
                    fix=f"give an array for each input: {', '.join(inputs)}",
                ) from error
            for name, value in zip(asked, values, strict=False):
                see(name, value)
            for name in set(names) & set(inputs):
                see(name, batch[name])
            samples += samples_of(batch)
        return samples

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to hold float32."""
        known = self._types.get(name)
        return known is not None and known.elem_type == onnx.TensorProto.FLOAT

    def _op(self, node: onnx.NodeProto) -> Op:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        kind: str | None = node.op_type if node.domain in {"", "ai.onnx"} else None
        inputs = [name for name in node.input if name and name not in self._constants]
        matrices = [n for n in node.input if n in self._constants and len(self._constants[n].dims) > 1]
        fields: dict[str, Any] = {}
        if kind in {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM"}:
            kind, fields = self._weighted(kind, node, attributes)
            inputs = inputs if kind == "MatMul" and not fields else inputs[:1]
        elif kind in {"Add", "Mul", "Concat"}:
            if (
                len(inputs) != len(node.input)
                or len(inputs) < 2
                or not all(self.is_float(name) for name in inputs)
            ):
                kind = None  # an operand is a constant, or this is arithmetic on shapes
        elif kind == "LayerNormalization":
            inputs = inputs[:1]
            if len(node.input) == 3 and all(name in self._constants for name in node.input[1:]):
                fields = {"weight": node.input[1], "bias": node.input[2]}
        elif kind == "Clip":
            fields["bounds"] = self._clip_bounds(node)
            kind = kind if fields["bounds"] else None
            inputs = inputs[:1]
        elif kind in {"Reshape", "Squeeze", "Unsqueeze", "Slice", "Transpose", "Flatten", "MaxPool"}:
            inputs = inputs[:1]
            if not inputs or not self.is_float(inputs[0]) or len(node.output) > 1:
                kind = None
        elif kind in {"AveragePool", "GlobalAveragePool"}:
            if attributes.get("ceil_mode", 0) and attributes.get("count_include_pad", 0):
                kind = None  # ONNX Runtime's integer kernel counts cells beyond the edge
        elif any(a.HasField("g") for a in node.attribute):
            kind = None
            matrices = [node.op_type] if _holds_weights(node) else []
        if kind is None or kind == "LSTM":
            inputs = [name for name in node.input if name and name not in self._constants]
        return Op(
            name=node.name,
            type=node.op_type,
            kind=kind,
            inputs=tuple(inputs),
            output=node.output[0],
            parameters=tuple(matrices),
            captures=tuple(sorted(_captured(node) - set(self._constants))),
            **fields,
        )

    def _clip_bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """None where a bound is computed as the model runs."""
        bounds = [-np.inf, np.inf]
        for index, name in enumerate(node.input[1:]):
            value = self.constant(name)
            if name and value is None:
                return None
            if value is not None:
                bounds[index] = float(value.reshape(()))
        return bounds[0], bounds[1]

    def _weighted(
        self, kind: str, node: onnx.NodeProto, attributes: Mapping[str, Any]
    ) -> tuple[str | None, dict[str, Any]]:
        slot = 0 if kind == "Gather" else 1
        name = node.input[slot]
        tensor = self._constants.get(name)
        if kind == "Gather" and (tensor is None or attributes.get("axis", 0) != 0):
            return None, {}
        if tensor is None:
            # A product of two activations is fine; a constant on the left is not what kernels expect.
            both = kind == "MatMul" and node.input[0] not in self._constants
            return ("MatMul" if both else None), {}
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            return None, {}
        rank = len(tensor.dims)
        fields: dict[str, Any] = {"weight": name}
        bias = node.input[2] if len(node.input) > 2 and kind not in {"Gather", "LSTM"} else ""
        if bias:
            if bias not in self._constants:
                return None, {}
            fields["bias"] = bias
        if kind == "LSTM" and attributes.get("layout", 0):
            return None, {}
        if kind == "Gemm":
            plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
            if not plain or attributes.get("transA", 0) or (bias and len(self._constants[bias].dims) != 1):
                return None, {}
            out_axis = 0 if attributes.get("transB", 0) else 1
            fields |= {"axis": out_axis, "in_axis": 1 - out_axis}
        elif kind in {"Conv", "ConvTranspose"}:
            out_axis = 0 if kind == "Conv" else 1
            fields |= {"axis": out_axis, "in_axis": 1 - out_axis, "groups": attributes.get("group", 1)}
        elif kind == "Gather":
            fields |= {"axis": 0, "in_axis": 1}
        elif kind == "MatMul":
            if rank != 2:
                return None, {}
            fields |= {"axis": 1, "in_axis": 0}
        return kind, fields


def _flatten_biases(graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Biases of Gemm that are broadcast become one number an output; the sum is the same."""
    for node in graph.node:
        bias = constants.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        weight = constants.get(node.input[1]) if bias is not None else None
        if bias is None or weight is None or len(weight.dims) != 2:
            continue
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        width = weight.dims[0 if turned else 1]
        if list(bias.dims) in ([1, width], [1], []) and list(bias.dims) != [width]:
            name = f"{bias.name}_of_{node.name}"
            row = np.broadcast_to(numpy_helper.to_array(bias).ravel(), (width,))
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(row), name))
            constants[name] = graph.initializer[-1]
            node.input[2] = name


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that branches and loops read and do not make themselves."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            made = {o for inner in graph.node for o in inner.output}
            made |= {v.name for v in graph.input} | {i.name for i in graph.initializer}
            for inner in graph.node:
                found |= ({name for name in inner.input if name} | _captured(inner)) - made
            found |= {o.name for o in graph.output} - made
    return found


def _holds_weights(node: onnx.NodeProto) -> bool:
    """Whether a branch or loop has weighted operators inside."""
    return any(
        inner.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else [])
        for inner in _all_nodes(graph)
    )
