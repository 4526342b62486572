"""MobileNetV2 for small images: Sandler et al., CVPR 2018, table 2, with fewer strides and stages."""

from __future__ import annotations

from torch import Tensor, nn

from hwopt.models.cnn import image_channels
from hwopt.models.zoo import MobileNetV2Options

# expansion, channels, repeats, stride of the first
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 56, 2, 1), (6, 72, 3, 2))
_STEM, _HEAD = 16, 320


def _conv(cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 without activation; residual where shapes agree."""

    def __init__(self, cin: int, cout: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = cin * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv(cin, hidden, 1), nn.ReLU6()]
        layers += [
            *_conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.ReLU6(),
            *_conv(hidden, cout, 1),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """N×cin×H×W to N×cout×H/stride×W/stride."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def _round8(channels: float) -> int:
    """Nearest multiple of 8, as the paper's reference code does, at least 8."""
    return max(8, int(channels + 4) // 8 * 8)


def build(sample_shape: tuple[int, ...], classes: int, options: MobileNetV2Options) -> nn.Module:
    """About 320,000 parameters at width 1 with ten classes."""
    stem = _round8(_STEM * options.width)
    layers: list[nn.Module] = [*_conv(image_channels(sample_shape, "mobilenet_v2"), stem, 3), nn.ReLU6()]
    channels = stem
    for expansion, base, repeats, stride in _STAGES:
        width = _round8(base * options.width)
        for index in range(repeats):
            layers.append(
                InvertedResidual(channels, width, stride=stride if index == 0 else 1, expansion=expansion)
            )
            channels = width
    head = _round8(_HEAD * options.width)
    layers += [*_conv(channels, head, 1), nn.ReLU6()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(options.dropout), nn.Linear(head, classes)
    )
