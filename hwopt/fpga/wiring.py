"""A small quantized network as wires: every weight becomes shifts and adders, and a result leaves every cycle.

The adder graphs are those of da4ml (distributed arithmetic with shared subexpressions, Sun et al., FPGA 2026),
which is optional: ``pip install 'hwopt[fpga]'``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from hwopt.errors import ConfigError, EngineMissingError
from hwopt.fpga.emulate import Circuit, code_range, zero_of
from hwopt.fpga.fixed import NotExactError, exponent_of

MOST_WEIGHTS: Final = (
    20_000  # da4ml takes seconds for a thousand weights, and more than proportionally for more
)


def installed() -> bool:
    """Whether da4ml is here."""
    return importlib.util.find_spec("da4ml") is not None


def must_be_installed() -> None:
    """EngineMissingError without da4ml."""
    if not installed():
        raise EngineMissingError("da4ml is not installed", fix="pip install 'hwopt[fpga]'")


class Wires:
    """The adder graph of a network of linear layers.

    Its inputs are the codes of the network's first quantizer, its outputs the values of the last layer.

    Raises:
        EngineMissingError: da4ml is not installed.
        ConfigError: the network has other layers than linear ones, or too many weights.
    """

    def __init__(self, path: Path) -> None:
        must_be_installed()
        self.circuit = Circuit(path)  # which refuses what is no integer arithmetic
        graph = self.circuit.graph
        strange = sorted({n.op_type for n in graph.node} - set(_WIRED))
        if strange:
            raise ConfigError(
                f"the unrolled layout wires linear layers, and the model has {', '.join(strange)}",
                fix="choose the streaming layout",
            )
        weights = sum(
            int(np.prod(numpy_helper.to_array(i).shape)) for i in graph.initializer if len(i.dims) == 2
        )
        if weights > MOST_WEIGHTS:
            raise ConfigError(
                f"the model has {weights:,} weights, and {MOST_WEIGHTS:,} are wired at most",
                fix="choose the streaming layout, or prune the model",
            )
        for node in graph.node:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                try:
                    exponent_of(self.circuit.constants[node.input[1]])
                except NotExactError as error:
                    raise ConfigError(str(error), fix=error.fix) from None
        self.first, self.scale, self.low, self.high = self._first_quantizer(graph)
        self.logic = self._trace(graph)

    def _first_quantizer(self, graph: onnx.GraphProto) -> tuple[str, float, int, int]:
        """The quantizer of the network's input: its output, its scale, least and greatest code."""
        name, low, high = self.circuit.input, -np.inf, np.inf
        constants = self.circuit.constants
        for node in graph.node:
            if not node.input or node.input[0] != name:
                continue
            if node.op_type == "Clip":
                first, last = (constants.get(end) for end in [*node.input[1:3], "", ""][:2])
                low, high = (
                    (-np.inf if first is None else float(first)),
                    (np.inf if last is None else float(last)),
                )
            elif node.op_type == "QuantizeLinear":
                zero = zero_of([constants.get(given) for given in node.input], _attributes(node))
                if np.any(zero):
                    raise ConfigError("the input's zero point is not 0", fix="quantize it symmetrically")
                scale, (least, most) = float(constants[node.input[1]]), code_range(zero.dtype)
                ends = (max(least, np.rint(low / scale)), min(most, np.rint(high / scale)))
                return node.output[0], scale, int(ends[0]), int(ends[1])
            name = node.output[0]
        raise ConfigError("the model's input passes no quantizer", fix="quantize the model")

    def _trace(self, graph: onnx.GraphProto) -> Any:
        from da4ml.trace import FixedVariableArrayInput, comb_trace

        shape = tuple(n or 1 for n in self.circuit.shape)
        bits = max(self.high, -self.low - 1).bit_length()
        # The first quantizer is the host's: what comes in are its codes.
        codes = FixedVariableArrayInput(shape).quantize(int(self.low < 0), bits, 0)
        values: dict[str, Any] = {**self.circuit.constants, self.first: codes}
        for node in graph.node:
            attributes = _attributes(node)
            if node.output[0] in values or any(n not in values for n in node.input if n):
                continue  # the host's part
            values[node.output[0]] = _WIRED[node.op_type]([values[n] for n in node.input], attributes)
        return comb_trace(codes, values[graph.output[0].name])

    def codes(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """What the host sends for float inputs: shape (samples, inputs)."""
        rounded = np.clip(np.rint(np.asarray(x, np.float64) / self.scale), self.low, self.high)
        return rounded.reshape(len(x), -1)

    def count(self, levels: int) -> tuple[float, float, int]:
        """LUTs, flip-flops and pipeline stages with ``levels`` adders between two registers."""
        from da4ml.trace import to_pipeline

        pipeline = to_pipeline(self.logic, levels, verbose=False)
        return float(self.logic.cost), float(pipeline.reg_bits), len(pipeline.solutions) + 1

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """da4ml's own interpreter of the graph."""
        found: npt.NDArray[np.float64] = self.logic.predict(self.codes(x))
        return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _type(kind: np.dtype[Any]) -> tuple[bool, int]:
    low, high = code_range(kind)
    return low < 0, (high - low).bit_length()


def _half_even(x: Any) -> Any:
    """Round to integers, ties to even: add just less than a half, and the missing bit where the floor is odd."""
    fractions = np.asarray(x.kif)[2]
    most = int(fractions.max())
    if most <= 0:
        return x
    least = 2.0**-most
    odd = x.quantize(0, 1, 0)  # the last bit of the floor
    rounded = x + (0.5 - least) + odd * least
    signs, integers, _ = np.asarray(rounded.kif)
    return rounded.quantize(signs, integers, np.zeros_like(integers))


def _quantize(taken: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, scale = taken[0], np.asarray(taken[1], np.float64)
    signed, bits = _type(zero_of(taken, attributes).dtype)
    return _half_even(x * (1.0 / scale)).quantize(int(signed), bits - int(signed), 0, overflow_mode="SAT")


def _dequantize(taken: list[Any], attributes: Mapping[str, Any]) -> Any:
    stored, scale = taken[0], np.asarray(taken[1], np.float64)
    if scale.ndim and scale.size > 1:
        shape = [1] * np.ndim(stored)
        shape[int(attributes.get("axis", 1)) if len(shape) > 1 else 0] = -1
        scale = scale.reshape(shape)
    return np.asarray(stored, np.float64) * scale if isinstance(stored, np.ndarray) else stored * scale


def _gemm(taken: list[Any], attributes: Mapping[str, Any]) -> Any:
    weight = taken[1].T if attributes.get("transB", 0) else taken[1]
    found = taken[0] @ weight
    return found + taken[2] if len(taken) > 2 else found


def _clip(taken: list[Any], attributes: Mapping[str, Any]) -> Any:
    x = taken[0]
    if len(taken) > 1:
        x = np.maximum(x, float(taken[1]))
    return np.minimum(x, float(taken[2])) if len(taken) > 2 else x


_WIRED: Final[dict[str, Callable[[list[Any], Mapping[str, Any]], Any]]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "MatMul": lambda taken, a: taken[0] @ taken[1],
    "Add": lambda taken, a: taken[0] + taken[1],
    "Relu": lambda taken, a: taken[0].relu(),
    "Clip": _clip,
    "Reshape": lambda taken, a: taken[0].reshape(1, -1),
    "Flatten": lambda taken, a: taken[0].reshape(1, -1),
    "Identity": lambda taken, a: taken[0],
    "Constant": lambda taken, a: taken,  # read before
}
