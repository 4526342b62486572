"""Q/DQ pairs as QONNX ``Quant`` nodes: the exchange format of FINN, hls4ml and Brevitas.

Reference:
    Pappalardo et al., QONNX: Representing Arbitrary-Precision Quantized Neural Networks, 2022; operator
    ``Quant`` of the domain qonnx.custom_op.general.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from hwopt.errors import ConfigError
from hwopt.fpga.emulate import code_range, zero_of
from hwopt.fpga.fixed import NotExactError, exponent_of

DOMAIN: Final = "qonnx.custom_op.general"
_IR: Final = 10  # that the runtimes of the tools read


def to_qonnx(path: Path, *, one_scale: bool = False) -> onnx.ModelProto:
    """A quantized ONNX file in QONNX.

    Args:
        one_scale: give every weight tensor a single scale, the least of its channels', and as many more bits;
            the values stay the same. hls4ml's types have one scale each.
    Raises:
        ConfigError: the file has no Q/DQ pair, or one that no ``Quant`` expresses.
    """
    try:
        return _Writer(onnx.load(path), one_scale).write()
    except NotExactError as error:
        raise ConfigError(str(error), fix=error.fix) from None


class _Writer:
    def __init__(self, model: onnx.ModelProto, one_scale: bool) -> None:
        self.model, self.graph, self.one_scale = model, model.graph, one_scale
        self.stored = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        for node in self.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.stored[node.output[0]] = numpy_helper.to_array(attribute.t)
        self.maker = {o: node for node in self.graph.node for o in node.output}
        self.extra: list[onnx.TensorProto] = []
        self.renamed: dict[str, str] = {}

    def write(self) -> onnx.ModelProto:
        nodes: list[onnx.NodeProto] = []
        found = 0
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                continue  # goes with its dequantizer
            if node.op_type == "DequantizeLinear":
                nodes += self.pair(node)
                found += 1
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
        if not found:
            raise ConfigError("the model has no quantizers", fix="quantize it first")
        graph = helper.make_graph(
            self.pruned(nodes),
            self.graph.name or "net",
            self.graph.input,
            self.graph.output,
            self.used(nodes),
        )
        opsets = [o for o in self.model.opset_import if o.domain in {"", "ai.onnx"}]
        made = helper.make_model(graph, opset_imports=[*opsets, helper.make_opsetid(DOMAIN, 1)])
        made.ir_version = _IR
        try:
            onnx.checker.check_model(made)
        except onnx.checker.ValidationError as error:
            raise ConfigError(
                f"the model does not translate: {str(error).splitlines()[0]}",
                fix="export it with Q/DQ pairs side by side",
            ) from error
        return made

    def pair(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The Quant of one dequantizer: of a stored tensor, or of the quantizer before it."""
        name = node.name or node.output[0]
        if any(given and given not in self.stored for given in node.input[1:]):
            raise ConfigError(f"{name} has a scale that is computed", fix="quantize with fixed scales")
        scale = np.asarray(self.stored[node.input[1]], np.float32)
        quantize = self.maker.get(node.input[0])
        if node.input[0] not in self.stored and (quantize is None or quantize.op_type != "QuantizeLinear"):
            raise ConfigError(
                f"{name} reads no quantizer" + (f" but {quantize.op_type}" if quantize else ""),
                fix="export the model with Q/DQ pairs side by side",
            )
        asked = {a.name: a.i for a in (quantize or node).attribute}
        zero = zero_of([self.stored.get(given) for given in node.input], asked)
        if np.any(zero):
            raise ConfigError(
                f"{node.name or node.output[0]} has a zero point",
                fix="quantize for an FPGA profile: zero points are 0",
            )
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if node.input[0] in self.stored:
            return self.weight(node, scale, axis)
        if quantize is None:
            raise ConfigError(f"{name} reads no quantizer")
        source, (low, high) = self.range(quantize, zero.dtype, scale)
        signed, bits, narrow = _type(low, high)
        return [self.quant(source, node.output[0], scale, bits, signed, narrow)]

    def weight(self, node: onnx.NodeProto, scale: npt.NDArray[np.float32], axis: int) -> list[onnx.NodeProto]:
        codes = np.asarray(self.stored[node.input[0]]).astype(np.int64)
        name = f"{node.output[0]}_value"
        shape = [1] * codes.ndim
        if scale.size > 1:
            shape[axis] = -1
        value = codes * scale.astype(np.float64).reshape(shape if scale.size > 1 else ())
        self.extra.append(numpy_helper.from_array(value.astype(np.float32), name))
        if codes.ndim == 1:  # a bias goes into the accumulator as it is
            self.renamed[node.output[0]] = name
            return []
        if self.one_scale:
            exponent_of(scale)  # hls4ml's types have no other
        if self.one_scale and scale.size > 1:
            e = exponent_of(scale)
            codes = codes << (e - e.min()).reshape(shape)
            scale = np.asarray(scale.min())
        spread = scale.reshape(shape) if scale.size > 1 else scale
        signed, bits, narrow = _type(int(codes.min()), int(codes.max()), stored=True)
        return [self.quant(name, node.output[0], spread, bits, signed, narrow)]

    def range(
        self, quantize: onnx.NodeProto, kind: np.dtype[Any], scale: npt.NDArray[np.float32]
    ) -> tuple[str, tuple[int, int]]:
        """What enters a quantizer and the codes it can give: a clip at whole codes before it is part of it."""
        (least, most), source = code_range(kind), quantize.input[0]
        clip = self.maker.get(source)
        known = clip is not None and len([n for n in clip.input[1:3] if n in self.stored]) == 2
        if clip is None or clip.op_type != "Clip" or scale.size > 1 or not known:
            return source, (least, most)
        ends = []
        for name, bound in zip(clip.input[1:3], (least, most), strict=True):
            end = float(self.stored[name]) / float(scale)
            ends.append(bound if abs(end) >= abs(float(bound)) else round(end))
            if ends[-1] != bound and abs(end - ends[-1]) > 1e-4:
                return source, (least, most)
        signed, bits, narrow = _type(ends[0], ends[1])
        if _ends(signed, bits, narrow) != (ends[0], ends[1]):
            return source, (least, most)  # no type has just these codes: the clip stays
        return clip.input[0], (ends[0], ends[1])

    def quant(
        self, source: str, output: str, scale: npt.NDArray[Any], bits: int, signed: bool, narrow: bool
    ) -> onnx.NodeProto:
        names = []
        for suffix, value in (("scale", scale), ("zero", np.zeros(())), ("bits", np.asarray(float(bits)))):
            names.append(f"{output}_{suffix}")
            self.extra.append(numpy_helper.from_array(np.asarray(value, np.float32), names[-1]))
        return helper.make_node(
            "Quant", [source, *names], [output], name=f"Quant_{output}", domain=DOMAIN,
            signed=int(signed), narrow=int(narrow), rounding_mode="ROUND",
        )  # fmt: skip

    def pruned(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Without the clips that became part of a Quant, and with biases by their new names."""
        for node in nodes:
            for index, name in enumerate(node.input):
                node.input[index] = self.renamed.get(name, name)
        wanted = {value.name for value in self.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        return kept[::-1]

    def used(self, nodes: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
        names = {name for node in self.pruned(nodes) for name in node.input}
        return [t for t in (*self.graph.initializer, *self.extra) if t.name in names]


def _type(low: int, high: int, *, stored: bool = False) -> tuple[bool, int, bool]:
    """Signed, bits and narrow range of the smallest type with these codes."""
    if low >= 0:
        return False, max(1, high.bit_length()), False
    bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    return True, bits, not stored and low == -high


def _ends(signed: bool, bits: int, narrow: bool) -> tuple[int, int]:
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
