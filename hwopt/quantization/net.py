"""What the rules see of a network, whether it is a torch graph or an ONNX file.

Operators carry ONNX type names, the language of hardware profiles. ``fx_net`` and ``onnx_net`` make this
view; the rules (``assign``) and the methods that need no gradient (``equalize``, ``smooth``) know nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Observer = Callable[[str, Array], None]  # (tensor, values of one batch)

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Output lies on the input's grid: one grid serves both.
TRANSPARENT: Final = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator.

    ``kind`` None is an operator that is never quantized; ``name`` says what it is all the same.
    """

    name: str  # of the node
    type: str  # as the framework calls it, for messages
    kind: str | None  # ONNX type where the rules apply to this node
    inputs: tuple[str, ...]  # activations that it reads, in order; constants are not among them
    output: str
    weight: str | None = None
    bias: str | None = None
    axis: int | None = None  # output-channel axis of the weight
    in_axis: int | None = None  # input-channel axis of the weight
    groups: int = 1
    bounds: tuple[float, float] | None = None  # of Clip
    captures: tuple[str, ...] = ()  # tensors that its branches or loops read
    parameters: tuple[str, ...] = ()  # constants with two or more axes, for operators that stay float


class Net(Protocol):
    """A network in order of execution."""

    ops: list[Op]
    outputs: frozenset[str]  # tensors that leave the network

    def constant(self, name: str) -> Array | None:
        """A weight or bias; None where the name is not a constant."""

    def set_constant(self, name: str, value: Array) -> None:
        """Replace a constant by one of the same shape."""

    def scale(self, tensor: str, factor: Array, users: Sequence[str]) -> None:
        """Multiply ``tensor`` by a factor a channel (last axis) for some of its readers, by their names."""

    def observe(self, batches: Iterable[Any], names: Sequence[str], see: Observer) -> int:
        """Run the float network and show the named tensors; the number of samples."""


def readers(net: Net, *, inside: bool = False) -> dict[str, list[Op]]:
    """Tensor to the operators that read it; with ``inside``, also those whose branches or loops do."""
    found: dict[str, list[Op]] = {}
    for op in net.ops:
        for name in (*op.inputs, *(op.captures if inside else ())):
            found.setdefault(name, []).append(op)
    return found


def makers(net: Net) -> dict[str, Op]:
    """Tensor to the operator that writes it."""
    return {op.output: op for op in net.ops}
