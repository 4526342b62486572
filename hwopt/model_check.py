"""Look at an ONNX file from outside before any runtime touches it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from hwopt.errors import ConfigError, UnsafeInputError

MAX_BYTES: Final = 2 << 30  # protobuf's own limit


def check_model(path: Path) -> None:
    """Refuse what is no sound, self-contained ONNX model.

    Raises:
        ConfigError: there is no such file.
        UnsafeInputError: too large, not ONNX, invalid, or its weights lie in other files.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="give the path of an .onnx file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsafeInputError(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}", where=str(path))
    try:
        model = onnx.load(path, load_external_data=False)
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model)):
            raise UnsafeInputError(
                "the model keeps its weights in other files",
                where=str(path),
                fix="save it as one file: onnx.save(onnx.load(path), new_path)",
            )
        onnx.checker.check_model(model)
    except RecursionError:
        raise UnsafeInputError("the model is nested too deeply", where=str(path)) from None
    except DecodeError:
        raise UnsafeInputError("not an ONNX file", where=str(path)) from None
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UnsafeInputError(
            f"not a valid ONNX model: {str(error).splitlines()[0]}", where=str(path)
        ) from None


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, in the graph, its subgraphs and functions."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of(graph)
