"""An ONNX model at other widths, without exporting it anew: its time depends on shapes, not on values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from hwopt.pruning.cut import Keep, positions
from hwopt.pruning.structure import Structure

_SMALL: Final = 1  # elements of constants that no width can change


class Scaled:
    """A float model whose stored weights carry the names of the network's parameters.

    Raises:
        ValueError: a stored tensor is no parameter (a transposed or packed one, as of recurrent layers), so
            that its shape at other widths is not known; export such networks at every width.
    """

    def __init__(
        self, model: onnx.ModelProto, structure: Structure, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._model, self._structure = model, structure
        flat = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
        self._sources: dict[str, str] = {}  # stored tensor -> parameter whose axes it has
        for stored in model.graph.initializer:
            dims = tuple(stored.dims)
            stem, _, leaf = stored.name.rpartition(".")
            if shapes.get(stored.name) == dims:
                self._sources[stored.name] = stored.name
            elif leaf == "bias" and shapes.get(f"{stem}.weight", ())[:1] == dims:
                self._sources[stored.name] = f"{stem}.weight"  # of a folded batch norm
            elif stored.name in flat and _flattens(stored):
                continue
            elif int(np.prod(dims)) > _SMALL:
                raise ValueError(f"{stored.name} is no parameter of the network")

    def at(self, keep: Keep) -> onnx.ModelProto:
        """The model with the units that ``keep`` holds."""
        scaled = onnx.ModelProto()
        scaled.CopyFrom(self._model)
        for stored in scaled.graph.initializer:
            if stored.name in self._sources:
                value = self._resized(stored, self._sources[stored.name], keep)
            elif _flattens(stored):
                value = np.asarray([0, -1], np.int64)  # the batch stays, the rest follows from the input
            else:
                continue
            stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), stored.name))
        weights = {i.name: i for i in scaled.graph.initializer}
        before = {i.name: i for i in self._model.graph.initializer}
        for node in scaled.graph.node:
            if node.op_type == "Reshape":
                for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                    attribute.i = 0
            if node.op_type == "Conv" and node.input[1] in weights:
                _regroup(node, before[node.input[1]].dims, weights[node.input[1]].dims)
        del scaled.graph.value_info[:]
        return scaled

    def _resized(self, stored: onnx.TensorProto, source: str, keep: Keep) -> np.ndarray:
        value = numpy_helper.to_array(stored)
        for dim in range(value.ndim):
            ids = self._structure.owners.get((source, dim))
            if ids is not None:
                value = value.take(positions(ids, keep), dim)
        return value


def _flattens(stored: onnx.TensorProto) -> bool:
    """The shape (batch, all the rest) of a Reshape."""
    if stored.data_type != onnx.TensorProto.INT64 or tuple(stored.dims) != (2,):
        return False
    return bool(numpy_helper.to_array(stored)[0] in {-1, 0})


def _regroup(node: onnx.NodeProto, before: Sequence[int], after: Sequence[int]) -> None:
    """A depthwise convolution has a group a channel at every width."""
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1 and before[1] == 1:
            attribute.i = after[0] // (before[0] // attribute.i)
