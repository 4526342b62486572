"""Residual networks for small images: He et al., CVPR 2016, section 4.2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hwopt.models.cnn import image_channels
from hwopt.models.zoo import ResNetOptions


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside the identity, or beside a 1×1 convolution where shapes change."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.second, self.norm2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.aside: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.aside = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """N×cin×H×W to N×cout×H/stride×W/stride."""
        y = functional.relu(self.norm1(self.first(x)))
        return functional.relu(self.norm2(self.second(y)) + self.aside(x))


def build(sample_shape: tuple[int, ...], classes: int, options: ResNetOptions) -> nn.Module:
    """6n+2 layers: three stages of n blocks, 270,000 parameters for 20 layers at width 16."""
    channels = image_channels(sample_shape, "resnet")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, options.width, 3, padding=1, bias=False), nn.BatchNorm2d(options.width), nn.ReLU(),
    ]  # fmt: skip
    channels = options.width
    for stage in range(3):
        width = options.width * 2**stage
        for index in range((options.depth - 2) // 6):
            layers.append(BasicBlock(channels, width, 2 if stage and not index else 1))
            channels = width
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(options.dropout),
        nn.Linear(channels, classes),
    )
