"""Identities of channels as they flow through a graph: who is tied to whom, and which weights they index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

Ids = npt.NDArray[np.int64]
Axis = tuple[str, int]  # name of a parameter or buffer, dimension

FIXED: Final = 0  # the identity of all that keeps its size


@dataclass(slots=True)
class Value:
    """A tensor in the graph: its shape with a batch of two, and the channels along one axis."""

    shape: tuple[int, ...]
    axis: int | None = None
    ids: Ids | None = None
    parameter: str | None = None

    @property
    def labels(self) -> Ids:
        """An identity for every element; fixed where there are no channels."""
        if self.axis is None or self.ids is None:
            return np.zeros(self.shape, np.int64)
        view = [1] * len(self.shape)
        view[self.axis] = -1
        return np.broadcast_to(self.ids.reshape(view), self.shape)


class Channels:
    """What one walk over a graph has found out."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.next = FIXED + 1
        self.ties: list[tuple[Ids, Ids]] = []
        self.axes: dict[Axis, Ids] = {}  # of weights, in the order of first use
        self.reasons: dict[int, str] = {}  # identity -> why it was frozen
        self.writers: set[Axis] = set()  # axes along which weights make the channels, not read them
        self.counters: list[tuple[str, str, Ids]] = []  # (module, attribute) and the heads that it counts

    def fresh(self, count: int) -> Ids:
        """New identities."""
        ids = np.arange(self.next, self.next + count, dtype=np.int64)
        self.next += count
        return ids

    def tie(self, a: Ids, b: Ids) -> None:
        """Identities that stay or go together, element by element."""
        a, b = np.broadcast_arrays(a, b)
        self.ties.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, value: Any, reason: str) -> None:
        """Channels that keep their number, and why."""
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Value) and part.ids is not None:
                self.tie(part.ids, np.asarray(FIXED))
                for name in part.ids.tolist():
                    self.reasons.setdefault(name, reason)

    def weigh(self, value: Any, dim: int, ids: Ids, *, writes: bool = True) -> None:
        """Parameter ``value`` has the channels ``ids`` along ``dim``; it makes them, or reads them."""
        if isinstance(value, Value) and value.parameter is not None and value.shape[dim] == len(ids):
            axis = (value.parameter, dim)
            if writes:
                self.writers.add(axis)
            if axis in self.axes:  # a layer that is used twice
                self.tie(self.axes[axis], ids)
            else:
                self.axes[axis] = ids
        elif value is not None:
            self.freeze(Value((len(ids),), 0, ids), "a tensor that no checkpoint stores has their number")

    def outputs(self, weight: Any, dim: int, bias: Any, count: int) -> Ids:
        """New channels, one a row of a weight."""
        ids = self.fresh(count)
        self.weigh(weight, dim, ids)
        if bias is not None:
            self.weigh(bias, 0, ids)
        return ids


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's only result; None where it has several or no tensor."""
    value = node.meta.get("val")
    return tuple(_concrete(s) for s in value.shape) if isinstance(value, Tensor) else None


def plain(node: fx.Node) -> Any:
    """What an operator gives, without channels."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return Value(tuple(_concrete(s) for s in value.shape))
    if isinstance(value, list | tuple):
        return [Value(tuple(_concrete(s) for s in v.shape)) if isinstance(v, Tensor) else v for v in value]
    return None


def _concrete(size: Any) -> int:
    """A size; the free batch has that of the example."""
    return size if isinstance(size, int) else int(size.node.hint)
