"""Small networks with the shapes that users bring, and the ways to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hwopt.quantization.graph import to_graph
from hwopt.quantization.onnx_export import export_onnx


class Lambda(nn.Module):
    """A forward function with layers."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def plain_cnn(width: int = 8, *, spread: float = 1.0) -> nn.Sequential:
    """Three convolutions with ReLU and a linear layer; ``spread`` unbalances the channels of the first."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    with torch.no_grad():
        factors = torch.logspace(0, np.log10(spread), width)
        net[0].weight.mul_(factors.reshape(-1, 1, 1, 1))
        net[0].bias.mul_(factors)
        net[2].weight.div_(factors.reshape(-1, 1, 1, 1))
    return net.eval()


def float_onnx(net: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    """Exported without quantization."""
    export_onnx(to_graph(net, shape), shape, path, {})
    return path


def run_onnx(
    model: Path | onnx.ModelProto, feed: dict[str, npt.NDArray[Any]], *, optimized: bool = True
) -> list[npt.NDArray[Any]]:
    """All outputs in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(None, feed)
    return outputs


def onnx_model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, npt.NDArray[Any]],
    shape: list[int | str],
    outputs: list[str],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with one float input ``x``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
