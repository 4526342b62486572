"""A plain convolutional network for small images."""

from __future__ import annotations

from torch import nn

from hwopt.errors import ConfigError
from hwopt.models.layers import activation, norm
from hwopt.models.zoo import CnnOptions


def image_channels(sample_shape: tuple[int, ...], model: str) -> int:
    """Channels of a C×H×W sample; ConfigError where samples are no images."""
    if len(sample_shape) != 3:
        raise ConfigError(
            f"the model {model!r} takes images, and the samples have shape {list(sample_shape)}",
            fix="choose the model mlp, or give images N×H×W or N×H×W×C",
        )
    return sample_shape[0]


def build(sample_shape: tuple[int, ...], classes: int, options: CnnOptions) -> nn.Module:
    """Convolutions, all but the first with stride 2, global average pooling, one linear layer.

    About 187,000 parameters at width 32, depth 4 and kernel 3 with ten classes.
    """
    channels = image_channels(sample_shape, "cnn")
    layers: list[nn.Module] = []
    for index in range(options.depth):
        width = options.width * (index + 1)
        layers += [
            nn.Conv2d(
                channels,
                width,
                options.kernel,
                stride=1 if index == 0 else 2,
                padding=options.kernel // 2,
                bias=options.norm == "none",
            ),
            *norm(options.norm, width, images=True),
            activation(options.activation),
        ]
        channels = width
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(options.dropout),
        nn.Linear(channels, classes),
    )
