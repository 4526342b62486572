"""The micro-suite: small networks of one kind of layer, and mixed ones, in float and in integer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwopt.core.hardware import QuantizationScheme
from hwopt.quantization.onnx_ptq import quantize_onnx
from hwopt.quantization.settings import PtqSettings

_SEED: Final = 0
_QUICK: Final = PtqSettings(tune=False)  # ranges decide about accuracy, not about time
_CALIBRATION: Final = 2


@dataclass(slots=True)
class Network:
    """A float ONNX model that grows layer by layer; images are N×C×H×W, vectors N×F."""

    shape: tuple[int, ...]  # of one sample, as it is after the last layer
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "input"
    first: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.first = self.shape

    def _add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *inputs], [name], name, **attributes))
        self.last = name
        return name

    def _weight(self, *shape: int) -> str:
        name = f"w{len(self.stored)}"
        fan = int(np.prod(shape[1:])) or 1
        value = self.rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(fan))
        self.stored.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, channels: int, kernel: int = 3, stride: int = 1, *, depthwise: bool = False) -> None:
        """A convolution with bias and ReLU."""
        c, h, w = self.shape
        if depthwise:
            channels = c
        weight = self._weight(channels, 1 if depthwise else c, kernel, kernel)
        self._add(
            "Conv",
            weight,
            self._weight(channels),
            pads=[kernel // 2] * 4,
            strides=[stride] * 2,
            group=c if depthwise else 1,
            kernel_shape=[kernel, kernel],
        )
        self._add("Relu")
        size = lambda n: (n + 2 * (kernel // 2) - kernel) // stride + 1  # noqa: E731
        self.shape = (channels, size(h), size(w))

    def residual(self) -> None:
        """A pointwise convolution around which its input is added."""
        before = self.last
        self.conv(self.shape[0], 1)
        self._add("Add", before)

    def dense(self, features: int, *, relu: bool = True) -> None:
        """A linear layer."""
        self._add("Gemm", self._weight(features, self.shape[0]), self._weight(features), transB=1)
        self.shape = (features,)
        if relu:
            self._add("Relu")

    def pool(self) -> None:
        """The greatest of 2×2."""
        self._add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        self.shape = (self.shape[0], self.shape[1] // 2, self.shape[2] // 2)

    def other(self, op: str, **attributes: Any) -> None:
        """An operator that runtimes do not merge, value by value."""
        self._add(op, **attributes)

    def flat(self) -> None:
        """The mean over the plane."""
        self._add("GlobalAveragePool")
        self._add("Flatten")
        self.shape = self.shape[:1]

    def model(self) -> onnx.ModelProto:
        """The whole as ONNX, with a free batch."""
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in (("input", self.first), (self.last, self.shape))
        ]
        graph = helper.make_graph(self.nodes, "suite", values[:1], values[1:], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def networks() -> Iterator[onnx.ModelProto]:
    """Every float network of the suite, the same ones each time."""
    rng = np.random.default_rng(_SEED)
    for build, sizes in _SINGLE:
        for c, hw in sizes:
            net = Network((c, hw, hw) if hw else (c,), rng)
            build(net)
            yield net.model()
    for _ in range(_MIXED):
        yield _mixed(rng)


def _convs(net: Network) -> None:
    for _ in range(2):
        net.conv(net.shape[0])


def _widening(net: Network) -> None:
    net.conv(2 * net.shape[0], stride=2)
    net.conv(2 * net.shape[0], stride=2)


def _pointwise(net: Network) -> None:
    for _ in range(3):
        net.conv(net.shape[0], 1)


def _depthwise(net: Network) -> None:
    for stride in (1, 1, 2):
        net.conv(0, 3, stride, depthwise=True)


def _dense(net: Network) -> None:
    for _ in range(2):
        net.dense(net.shape[0])


def _adds(net: Network) -> None:
    for _ in range(3):
        net.residual()


def _pools(net: Network) -> None:
    net.conv(net.shape[0], 1)
    net.pool()
    net.pool()


def _softmax(net: Network) -> None:
    net.conv(net.shape[0], 1)
    net.other("Softmax", axis=1)
    net.other("Tanh")
    net.other("Erf")


_Sizes = tuple[tuple[int, int], ...]
_SINGLE: Final[tuple[tuple[Callable[[Network], None], _Sizes], ...]] = (
    (_convs, ((8, 32), (16, 16), (24, 28), (32, 28), (64, 14), (128, 7))),
    (_widening, ((3, 32), (1, 28), (16, 28), (32, 14))),
    (_pointwise, ((16, 28), (32, 28), (64, 14), (128, 14), (192, 7), (384, 4))),
    (_depthwise, ((16, 28), (32, 28), (96, 14), (192, 14), (384, 7))),
    (_dense, ((64, 0), (128, 0), (256, 0), (512, 0), (1024, 0))),
    (_adds, ((16, 28), (64, 14), (128, 14))),
    (_pools, ((16, 32), (64, 16))),
    (_softmax, ((16, 16), (32, 28))),
)
_MIXED: Final = 16


def _mixed(rng: np.random.Generator) -> onnx.ModelProto:
    """A small classifier: a stem, blocks of several kinds, a head."""
    side = int(rng.choice([16, 28, 32, 48]))
    net = Network((int(rng.choice([1, 3])), side, side), rng)
    net.conv(int(rng.choice([8, 16, 24, 32])), 3, int(rng.choice([1, 2])))
    for _ in range(int(rng.integers(2, 6))):
        kind = rng.choice(["conv", "separable", "residual", "pool", "inverted"])
        width = net.shape[0]
        stride = int(rng.choice([1, 2])) if net.shape[1] > 4 else 1
        if kind == "conv":
            net.conv(min(128, int(width * rng.choice([1, 2]))), 3, stride)
        elif kind == "separable":
            net.conv(0, 3, stride, depthwise=True)
            net.conv(min(256, 2 * width), 1)
        elif kind == "residual":
            net.residual()
        elif kind == "pool" and net.shape[1] > 4:
            net.pool()
        else:
            net.conv(min(384, 4 * width), 1)
            net.conv(0, 3, stride, depthwise=True)
            net.conv(width, 1)
    net.flat()
    if rng.random() < 0.5:
        net.dense(int(rng.choice([32, 64, 128])))
    net.dense(10, relu=False)
    return net.model()


def quantized(model: onnx.ModelProto, scheme: QuantizationScheme) -> onnx.ModelProto:
    """The integer version under a device's scheme; ranges from random inputs."""
    (value,) = (i for i in model.graph.input)
    shape = [d.dim_value or _CALIBRATION for d in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(_SEED).random(shape, dtype=np.float32)
    return quantize_onnx(model, scheme, [{value.name: x}], _QUICK).model
