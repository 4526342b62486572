"""Tiny models, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwopt.config.hardware import shipped
from hwopt.core.hardware import QuantizationScheme
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, deployed, insert
from hwopt.quantization.onnx_export import export_onnx

Reference = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

SAMPLE_SHAPE = (1, 8, 8)
CLASSES = 4


class TinyNet(nn.Module):
    """Two convolutions, a depthwise one, a residual addition, pooling and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.point = nn.Conv2d(width, width, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """N×1×8×8 to N×4."""
        x = self.stem(x)
        x = x + self.point(self.depthwise(x))
        logits: Tensor = self.head(self.pool(x).mean((2, 3)))
        return logits


def tiny_net(seed: int = 0) -> TinyNet:
    """A ``TinyNet`` with batch-norm statistics that are not the initial ones, in evaluation mode."""
    torch.manual_seed(seed)
    net = TinyNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.0, 0.3)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def images(n: int = 64, seed: int = 0) -> Tensor:
    """Random images in 0…1."""
    return torch.rand(n, *SAMPLE_SHAPE, generator=torch.Generator().manual_seed(seed))


def _reference(module: nn.Module) -> Reference:
    def call(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            result: npt.NDArray[np.float32] = module(torch.from_numpy(x)).numpy()
        return result

    return call


def float_model(folder: Path) -> tuple[Path, Reference]:
    """A float ONNX file and what it should compute."""
    graph = to_graph(tiny_net(), SAMPLE_SHAPE)
    path = folder / "float.onnx"
    export_onnx(graph, SAMPLE_SHAPE, path, {})
    return path, _reference(graph)


def quantized_model(folder: Path, device: str | QuantizationScheme) -> tuple[Path, Reference]:
    """A QDQ ONNX file under a device's scheme and its fake-quantized twin."""
    scheme = shipped(device).quantization if isinstance(device, str) else device
    graph = to_graph(tiny_net(), SAMPLE_SHAPE)
    insert(graph, scheme)
    calibrate(graph, [images()])
    path = folder / "quantized.onnx"
    export_onnx(deployed(graph), SAMPLE_SHAPE, path, {})
    return path, _reference(graph)
