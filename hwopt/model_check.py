"""Look at an ONNX file from outside before any runtime touches it.

What runtimes accept and must not be given (symbolic and hard links to other files, offsets beyond a file's end, loops
without an end, operators that make terabytes) was measured; the table stands in docs/security.md.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from hwopt.core.dataset import Array
from hwopt.errors import ConfigError, UnsafeInputError
from hwopt.external_data import check_external, location_of, no_overlaps
from hwopt.wire import WireError, census

MAX_BYTES: Final = 2 << 30  # protobuf's own limit
MAX_DEPTH: Final = 16  # graphs inside of graphs
MAX_TENSOR_BYTES: Final = 1 << 33  # of an activation or a constant that the file declares, at batch 1
MAX_SPARSE_BYTES: Final = 1 << 28  # of a sparse tensor written out, as runtimes do
MAX_RANK: Final = 64
MAX_TRIPS: Final = 1_000_000  # of a loop with a constant count
MAX_ALL_TRIPS: Final = 100_000_000  # of loops inside of loops
MAX_EXPANDED: Final = 1_000_000  # nodes, once functions are written out
_SMALL: Final = 4096  # bytes of a constant that shape inference may need to see
# Operators of these can be run by a runtime that is here, or are read by hwopt itself; else a model's own functions.
DOMAINS: Final = frozenset(
    [
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.openvinotoolkit",
        "qonnx.custom_op.general",
        "qonnx.custom_op.channels_last",
        "onnx.brevitas",
        "finn.custom_op.general",
    ]
) | {""}


def check_model(path: Path) -> None:
    """Refuse what is no sound ONNX model, before a library that could be harmed by it reads it.

    Raises:
        ConfigError: there is no such file.
        UnsafeInputError: too large, not ONNX, invalid, or it asks for what no model needs.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="give the path of an .onnx file")
    try:
        _check(path)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except UnsafeInputError as error:
        raise error.at(str(path)) from None
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        # The file is from outside: what the look at it stumbles over is the file's fault.
        raise UnsafeInputError(
            f"not a valid ONNX model: {type(error).__name__} where its parts were looked at", where=str(path)
        ) from None


def _check(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsafeInputError(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}")
    if size == 0:
        raise UnsafeInputError("not an ONNX file: it is empty", fix="give the path of an .onnx file")
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            try:
                census(view)
            finally:
                view.release()
        model = onnx.load(path, load_external_data=False)
    except WireError as error:
        raise UnsafeInputError(f"not an ONNX file: {error}", fix="give the path of an .onnx file") from None
    except (DecodeError, RecursionError):
        raise UnsafeInputError("not an ONNX file", fix="give the path of an .onnx file") from None
    if not model.graph.node and not model.graph.output:
        raise UnsafeInputError(
            "not an ONNX model: it has no operators and no outputs", fix="export the model again"
        )
    _tensors_are_what_they_say(model, path)
    _domains(model)
    _functions(model)
    _loops_and_depth(model.graph, {}, 1, 1)
    for function in model.functions:
        body = GraphProto(node=function.node)
        _loops_and_depth(body, {}, 1, 1)
    external = any(location_of(t) for t in model.graph.initializer)
    try:
        # With its weights elsewhere, only a path tells the checker where to look for them.
        onnx.checker.check_model(str(path) if external else model)
    except RecursionError:
        raise UnsafeInputError("the model is nested too deeply") from None
    except Exception as error:  # its own errors, and what the C++ behind it lets through
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsafeInputError(
            f"not a valid ONNX model: {text}", fix="export it again; onnx.checker.check_model must accept it"
        ) from None
    _declared_sizes(model)


def _tensors_are_what_they_say(model: ModelProto, path: Path) -> None:
    """Type, shape and stored bytes of every tensor agree; bytes in other files are where they may be."""
    taken: dict[Path, list[tuple[int, int, str]]] = {}
    own = len(model.graph.initializer)  # they come first
    for index, tensor in enumerate(_tensors(model)):
        count = _count(tensor.name, tensor.dims, _BITS.get(tensor.data_type, 8))
        if tensor.data_type not in _BITS:
            raise UnsafeInputError(f"the tensor {_name(tensor.name)} has the unknown type {tensor.data_type}")
        if tensor.data_type == TensorProto.STRING:
            if location_of(tensor) or len(tensor.string_data) != count:
                raise UnsafeInputError(
                    f"the tensor {_name(tensor.name)} has {len(tensor.string_data):,} texts for {count:,} places"
                )
            continue
        expected = -(-count * _BITS[tensor.data_type] // 8)
        if location_of(tensor):
            if index >= own:
                raise UnsafeInputError(
                    f"the tensor {_name(tensor.name)} is no weight, and lies in another file", fix=_INLINE
                )
            check_external(tensor, expected, path.parent, taken)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != expected:
                raise UnsafeInputError(
                    f"the tensor {_name(tensor.name)} declares {expected:,} bytes and holds {len(tensor.raw_data):,}"
                )
        elif count and _typed_count(tensor) != _typed_expected(tensor.data_type, count):
            raise UnsafeInputError(
                f"the tensor {_name(tensor.name)} declares {count:,} values and holds {_typed_count(tensor):,}"
            )
    no_overlaps(taken)


_INLINE: Final = "save it as one file: onnx.save(onnx.load(path), new_path)"
_BITS: Final[Mapping[int, int]] = {
    TensorProto.STRING: 0,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    **{
        kind: {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}.get(
            TensorProto.DataType.Name(kind), helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
        )
        for kind in TensorProto.DataType.values()
        if kind
        not in {TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128}
    },
}


def _typed_count(tensor: TensorProto) -> int:
    """Values in the field that belongs to the type; those in another are none."""
    kind = tensor.data_type
    names: Mapping[int, str] = {
        TensorProto.FLOAT: "float_data",
        TensorProto.COMPLEX64: "float_data",
        TensorProto.DOUBLE: "double_data",
        TensorProto.COMPLEX128: "double_data",
        TensorProto.INT64: "int64_data",
        TensorProto.UINT32: "uint64_data",
        TensorProto.UINT64: "uint64_data",
    }
    return len(getattr(tensor, names.get(kind, "int32_data")))


def _typed_expected(kind: int, count: int) -> int:
    if kind in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return 2 * count
    return -(-count * _BITS[kind] // 8) if _BITS[kind] < 8 else count


def _count(name: str, dims: Iterable[int], bits: int, most: int = MAX_TENSOR_BYTES) -> int:
    """Values of a shape, if they are no more than ``most`` bytes; the shape may be anything."""
    sizes = [int(d) for d in itertools.islice(dims, MAX_RANK + 1)]
    if len(sizes) > MAX_RANK:
        raise UnsafeInputError(f"the tensor {_name(name)} has more than {MAX_RANK} axes")
    if any(d < 0 for d in sizes):
        raise UnsafeInputError(f"the tensor {_name(name)} has a negative size: {sizes[:8]}")
    if 0 in sizes:
        return 0
    count = 1
    for size in sizes:
        count *= size
        if count * max(bits, 8) > 8 * most:
            raise UnsafeInputError(
                f"the tensor {_name(name)} has more values than {most:,} bytes can hold: {sizes[:8]}"
            )
    return count


def _name(text: str) -> str:
    """A name from the file for a message: short, on one line."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _domains(model: ModelProto) -> None:
    own = {(f.domain, f.name) for f in model.functions}
    for node in _nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise UnsafeInputError(
                f"the operator {_name(node.op_type)} is of the domain {_name(node.domain)}, which needs code "
                "that hwopt does not load",
                fix="export with standard operators, or with the operator as a function of the model",
            )


def _functions(model: ModelProto) -> None:
    """Functions that call each other in a circle, or that are small and become huge."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], calling: tuple[tuple[str, str], ...]) -> int:
        if key in calling:
            raise UnsafeInputError(f"the function {_name(key[1])} calls itself")
        if len(calling) > 64:
            raise UnsafeInputError("functions call each other more than 64 deep")
        if key not in sizes:
            sizes[key] = _sum(_below(bodies[key].node), (*calling, key))
        return sizes[key]

    def _sum(nodes: Iterable[NodeProto], calling: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += size(key, calling) if key in bodies else 1
            if total > MAX_EXPANDED:
                who = _name(calling[-1][1]) if calling else "the model"
                raise UnsafeInputError(f"{who} stands for more than {MAX_EXPANDED:,} operators")
        return total

    for key in bodies:
        size(key, ())
    _sum(_below(model.graph.node), ())


def _loops_and_depth(graph: GraphProto, outer: Mapping[str, Array | None], depth: int, trips: int) -> None:
    """Walk a graph with the constants that it sees; ``trips`` are those of the loops around it."""
    if depth > MAX_DEPTH:
        raise UnsafeInputError(f"graphs are nested more than {MAX_DEPTH} deep")
    constants = dict(outer) | {t.name: _values(t) for t in graph.initializer}
    for node in graph.node:
        if node.domain in _STANDARD and node.op_type == "Constant" and node.output:
            constants[node.output[0]] = _constant_of(node)
        if (
            node.domain in _STANDARD
            and node.op_type in _HANDS_ON
            and node.input
            and node.input[0] in constants
        ):
            constants[node.output[0]] = constants[node.input[0]]
        inside = trips * _trips(node, constants)
        if inside > MAX_ALL_TRIPS:
            raise UnsafeInputError(
                f"loops inside of loops have {inside:,} trips; the limit is {MAX_ALL_TRIPS:,}"
            )
        _makes(node, constants)
        for inner in _graphs(node):
            _loops_and_depth(inner, constants, depth + 1, inside)


_STANDARD: Final = frozenset({"", "ai.onnx"})
_HANDS_ON: Final = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"})
_ELSEWHERE: Final = np.zeros(0)  # a constant whose values lie in another file


def _graphs(node: NodeProto) -> list[GraphProto]:
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def _below(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in _graphs(node):
            waiting.extend(graph.node)


def _values(tensor: TensorProto) -> Array | None:
    """The values of a small tensor of whole numbers or truth values; None for any other."""
    if location_of(tensor):
        return _ELSEWHERE
    if tensor.data_type == TensorProto.STRING or math.prod(tensor.dims) > _SMALL:
        return None
    values = numpy_helper.to_array(tensor)
    return values if values.dtype.kind in "iub" else None


def _constant_of(node: NodeProto) -> Array | None:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return _values(attribute.t)
            case "value_int":
                return np.array(attribute.i)
            case "value_ints":
                return np.array(attribute.ints, np.int64)
    return None


def _trips(node: NodeProto, constants: Mapping[str, Array | None]) -> int:
    """Trips of a loop as far as they are known; 1 for any other operator."""
    if node.op_type != "Loop" or node.domain not in _STANDARD:
        return 1
    count = constants.get(node.input[0]) if node.input and node.input[0] else None
    condition = constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if count is _ELSEWHERE or condition is _ELSEWHERE:
        raise UnsafeInputError(f"the count of the loop {_name(node.name)} lies in another file", fix=_INLINE)
    if count is not None and count.size:
        found = int(count.max())
        if found > MAX_TRIPS:
            raise UnsafeInputError(
                f"the loop {_name(node.name)} has {found:,} trips; the limit is {MAX_TRIPS:,}"
            )
        return max(1, found)
    unknown = len(node.input) > 1 and bool(node.input[1]) and condition is None
    if not (node.input and node.input[0]) and not unknown and (condition is None or bool(condition.all())):
        raise UnsafeInputError(f"the loop {_name(node.name)} has no count, and may never end")
    return 1


def _makes(node: NodeProto, constants: Mapping[str, Array | None]) -> None:
    """Refuse operators whose constant settings ask for more than any machine holds."""
    if node.domain not in _STANDARD:
        return
    sizes: list[int] = []
    if node.op_type in {"ConstantOfShape", "Expand", "Tile"}:
        shape = constants.get(node.input[-1]) if node.input else None
        if shape is not None:
            sizes = [abs(int(d)) for d in shape.ravel()]
    elif node.op_type == "Range":
        ends = [constants.get(name) for name in node.input]
        if len(ends) == 3 and all(e is not None and e.size for e in ends):
            start, limit, step = (int(e.ravel()[0]) for e in ends if e is not None)
            sizes = [abs(limit - start) // max(1, abs(step))]
    elif node.op_type in {"RandomNormal", "RandomUniform"}:
        sizes = [abs(d) for a in node.attribute if a.name == "shape" for d in a.ints]
    made = 8
    for size in sizes:
        made *= size
        if made > MAX_TENSOR_BYTES:
            _made(node, made)


def _made(node: NodeProto, size: int) -> None:
    raise UnsafeInputError(
        f"{node.op_type} {_name(node.name)} makes at least {size:,} bytes; the limit is {MAX_TENSOR_BYTES:,}"
    )


def _declared_sizes(model: ModelProto) -> None:
    """Activations that are too large for any machine, as far as shapes are known. Takes the model apart."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.raw_data = b""
    try:
        found = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # what cannot be inferred is not known
        found = model
    graphs = [found.graph, *(g for node in _below(found.graph.node) for g in _graphs(node))]
    for value in (v for graph in graphs for v in (*graph.input, *graph.value_info, *graph.output)):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            continue
        dims = [d.dim_value if d.HasField("dim_value") else 1 for d in kind.shape.dim]
        _count(value.name, dims, _BITS.get(kind.elem_type, 32))


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node: of the graph, its subgraphs and functions."""
    yield from _below([*model.graph.node, *(n for f in model.functions for n in f.node)])


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, the graph's initializers first; then of attributes, subgraphs and functions."""
    graphs = [
        model.graph,
        *(t.initialization for t in model.training_info),
        *(t.algorithm for t in model.training_info),
    ]
    nodes = [n for f in model.functions for n in f.node]
    attributes = [a for f in model.functions for a in f.attribute_proto]
    while graphs or nodes or attributes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                _count(sparse.values.name, sparse.dims, 64, MAX_SPARSE_BYTES)
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        attributes.extend(a for node in nodes for a in node.attribute)
        graphs, nodes = [], []
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                _count(sparse.values.name, sparse.dims, 64, MAX_SPARSE_BYTES)
                yield from (sparse.values, sparse.indices)
            graphs.extend((*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs))
        attributes = []
