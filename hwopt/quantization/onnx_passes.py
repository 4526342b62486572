"""What runtimes need of an ONNX file beyond being correct; each pass is a function on the graph.

Known behaviour of torch's exporter that is mended here: global average pooling comes out as ReduceMean, which
integer runtimes do not fuse; equal scales are merged into one initializer, which ONNX Runtime's
``session.x64quantprecision`` refuses; every node carries a Python stack trace with paths of this machine.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_INT4_OPSET: Final = 21


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Every name that a node or tensor of the graph has."""
    names = {i.name for i in graph.initializer} | {v.name for v in (*graph.input, *graph.output)}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
    return names | _read(graph)


def fresh(names: set[str], wanted: str) -> str:
    """``wanted`` or the next free name, which is taken from then on."""
    name, number = wanted, 2
    while name in names:
        name, number = f"{wanted}_{number}", number + 1
    names.add(name)
    return name


def name_nodes(graph: onnx.GraphProto) -> None:
    """Nodes without a name, or with one that another has, get their own."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        node.name = fresh(taken, node.name or f"{node.op_type}_{index}")


def own_constants(graph: onnx.GraphProto) -> None:
    """Layers that share a bias but no weight, or a weight along two axes, get copies of their own.

    Exporters merge equal initializers; whoever scales or corrects one layer would change the other.
    """
    constants = {i.name: i for i in graph.initializer}
    taken, roles = names_of(graph), dict[str, dict[object, str]]()
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name not in constants:
                continue
            known = roles.setdefault(name, {})
            role = _role(node, slot)
            if role not in known:
                known[role] = name if not known else fresh(taken, f"{name}_copy")
                if known[role] != name:
                    copy = graph.initializer.add()
                    copy.CopyFrom(constants[name])
                    copy.name = known[role]
            node.input[slot] = known[role]


def _role(node: onnx.NodeProto, slot: int) -> object:
    """Equal for two readers that may share a constant."""
    attributes = _attributes(node)
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"} and slot == 2:
        return ("bias of", node.input[1])
    if node.op_type == "LayerNormalization" and slot:
        return ("layer norm", node.name)
    if slot == 1 and node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(
            node.op_type, 0 if attributes.get("transB", 0) else -1
        )
    return "elsewhere"


def remove_unused(graph: onnx.GraphProto) -> None:
    """Initializers that no node reads, in branches and loops either."""
    used = {o.name for o in graph.output} | _read(graph)
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _read(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                names |= _read(inner) | {o.name for o in inner.output}
    return names


def global_pools(graph: onnx.GraphProto) -> None:
    """ReduceMean over the last two of four axes becomes GlobalAveragePool."""
    constants = {i.name: i for i in graph.initializer}
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = sorted(int(a) for a in numpy_helper.to_array(constants[node.input[1]]).ravel())
        keep = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
        if keep and (axes == [-2, -1] or axes == [2, 3]) and ranks.get(node.output[0], 4) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    remove_unused(graph)


def unshare_grids(graph: onnx.GraphProto) -> None:
    """Every Q and DQ node gets scale and zero point of its own."""
    constants = {i.name: i for i in graph.initializer}
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        for slot in (1, 2):
            if len(node.input) <= slot or node.input[slot] not in constants:
                continue
            name = node.input[slot]
            if name in taken:
                copy = graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = f"{name}_of_{index}"
                node.input[slot] = copy.name
            taken.add(name)


def strip_traces(proto: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporter: bytes, and paths of this machine."""
    holders: tuple[Any, ...] = (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    )
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.graph.doc_string = ""
    del proto.functions[:]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def fold_weight_transposes(graph: onnx.GraphProto) -> None:
    """A stored weight behind DequantizeLinear and Transpose is stored the other way round.

    Runtimes recognize a product with quantized weights only where nothing stands between the two.
    """
    constants = {i.name: i for i in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    makers = {output: node for node in graph.node for output in node.output}
    for node in list(graph.node):
        source = makers.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in constants:
            continue
        if readers[source.output[0]] != 1 or any(name not in constants for name in source.input[1:]):
            continue
        perm = list(_attributes(node).get("perm", []))
        attributes = _attributes(source)
        blocked = attributes.get("block_size", 0)
        for slot, name in enumerate(source.input):
            values = numpy_helper.to_array(constants[name])
            if slot == 0 or blocked:
                turned = f"{name}_turned_{''.join(map(str, perm))}"
                if turned not in constants:  # layers with equal weights share their codes
                    array = np.ascontiguousarray(values.transpose(perm))
                    graph.initializer.append(numpy_helper.from_array(array, turned))
                    constants[turned] = graph.initializer[-1]
                source.input[slot] = turned
        for attribute in source.attribute:
            if attribute.name == "axis":
                attribute.i = perm.index(attribute.i % len(perm))
        source.output[0] = node.output[0]
        graph.node.remove(node)
    remove_unused(graph)


def merge_padding(graph: onnx.GraphProto) -> None:
    """Zeros padded in front of a convolution become the convolution's own padding."""
    constants = {i.name: i for i in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        pad = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or len(pad.input) < 2 or pad.input[1] not in constants:
            continue
        attributes = _attributes(node)
        value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
        ends = [int(p) for p in numpy_helper.to_array(constants[pad.input[1]])]
        half = len(ends) // 2
        plain = _attributes(pad).get("mode", b"constant") == b"constant" and len(pad.input) < 4
        zero = value is None or float(numpy_helper.to_array(value).reshape(())) == 0.0
        spatial = not any(ends[:2] + ends[half : half + 2]) and min(ends) >= 0
        own = list(attributes.get("pads", [0] * (2 * (half - 2))))
        if not (plain and zero and spatial) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        more = ends[2:half] + ends[half + 2 :]
        for attribute in [a for a in node.attribute if a.name == "pads"]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("pads", [a + b for a, b in zip(own, more, strict=True)]))
        node.input[0] = pad.input[0]
    used = _read(graph) | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type == "Pad" and n.output[0] not in used]:
        graph.node.remove(node)
    remove_unused(graph)


def integer_products(graph: onnx.GraphProto) -> None:
    """Products whose input is quantized as it runs, in the form that runtimes fuse.

    DynamicQuantizeLinear → DequantizeLinear → MatMul(DequantizeLinear(W)) becomes MatMulInteger and a
    scaling, the pattern that ONNX Runtime knows as DynamicQuantizeMatMul.
    """
    constants = {i.name: i for i in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    dynamic = {}  # dequantized tensor -> its DynamicQuantizeLinear
    for node in graph.node:
        source = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            dynamic[node.output[0]] = source
    if not dynamic:
        return
    nodes: list[onnx.NodeProto] = []
    taken = names_of(graph)
    for node in graph.node:
        weight = makers.get(node.input[1]) if node.op_type in {"MatMul", "Gemm"} else None
        if weight is None or weight.op_type != "DequantizeLinear" or node.input[0] not in dynamic:
            nodes.append(node)
            continue
        nodes += _integer_product(graph, node, dynamic[node.input[0]], weight, constants, taken)
    # What only served the old form goes.
    while True:
        used = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
        used |= _read(graph) - {name for node in graph.node for name in node.input}
        kept = [node for node in nodes if any(output in used for output in node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(graph)


def _integer_product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    quantize: onnx.NodeProto,
    weight: onnx.NodeProto,
    constants: dict[str, TensorProto],
    taken: set[str],
) -> list[onnx.NodeProto]:
    codes, scale, zero = (numpy_helper.to_array(constants[name]) for name in weight.input[:3])
    if node.op_type == "Gemm" and _attributes(node).get("transB", 0):
        codes = codes.T
    name, out = node.name or node.output[0], node.output[0]
    stored = [fresh(taken, f"{name}_{part}") for part in ("codes", "scale", "zero")]
    for key, value in zip(stored, (np.ascontiguousarray(codes), scale, zero), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, key))
    x, x_scale, x_zero = quantize.output
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    integers, floats, factors = (fresh(taken, f"{out}_{part}") for part in ("integer", "float", "factor"))
    product = fresh(taken, f"{out}_product") if bias else out
    make = helper.make_node
    made = [
        make("MatMulInteger", [x, stored[0], x_zero, stored[2]], [integers], name),
        make("Cast", [integers], [floats], fresh(taken, f"{name}_cast"), to=TensorProto.FLOAT),
        make("Mul", [x_scale, stored[1]], [factors], fresh(taken, f"{name}_scales")),
        make("Mul", [floats, factors], [product], fresh(taken, f"{name}_scaled")),
    ]
    if bias:
        made.append(make("Add", [product, bias], [out], fresh(taken, f"{name}_bias_added")))
    return made


def pack_four_bits(model: onnx.ModelProto) -> None:
    """Weights of float products whose codes fit into four bits are stored as INT4; opset 21.

    Products with quantized inputs keep 8-bit containers, which integer kernels read.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    packed: set[str] = set()
    blocked = False
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or any(name not in constants for name in node.input):
            continue
        blocked = blocked or bool(_attributes(node).get("block_size", 0))
        users = readers.get(node.output[0], [])
        fronts = [makers.get(user.input[0]) for user in users if user.op_type in {"MatMul", "Gemm"}]
        in_float = len(fronts) == len(users) and all(
            f is None or f.op_type != "DequantizeLinear" for f in fronts
        )
        values = numpy_helper.to_array(constants[node.input[0]])
        fits = values.dtype.kind == "i" or constants[node.input[0]].data_type == TensorProto.INT4
        if not users or not in_float or not fits or values.ndim < 2 or values.min() < -8 or values.max() > 7:
            continue
        for name in (node.input[0], node.input[2]):
            if constants[name].data_type != TensorProto.INT4:  # else another layer stores the same
                array = numpy_helper.to_array(constants[name])
                constants[name].CopyFrom(
                    helper.make_tensor(name, TensorProto.INT4, array.shape, array.ravel().tolist())
                )
                packed.add(name)
    for value in [v for v in graph.value_info if v.name in packed]:
        graph.value_info.remove(value)  # torch's exporter lists weights there, as INT8
    if packed or blocked:
        _need_opset_21(model)


def allow_sixteen_bits(model: onnx.ModelProto) -> None:
    """Pairs over 16-bit integers came with opset 21, as those over 4 bits did."""
    wide = {TensorProto.INT16, TensorProto.UINT16}
    if any(i.data_type in wide for i in model.graph.initializer):
        _need_opset_21(model)


def _need_opset_21(model: onnx.ModelProto) -> None:
    for opset in model.opset_import:
        if opset.domain == "" and opset.version < _INT4_OPSET:
            opset.version = _INT4_OPSET
    model.ir_version = max(model.ir_version, 10)


def split_biases(graph: onnx.GraphProto) -> None:
    """Gemm adds its bias in an operator of its own."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Gemm" and len(node.input) > 2 and _attributes(node).get("beta", 1.0) == 1.0:
            out, bias = node.output[0], node.input[2]
            del node.input[2:]
            node.output[0] = f"{out}_product"
            nodes.append(helper.make_node("Add", [f"{out}_product", bias], [out], f"{out}_bias"))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
