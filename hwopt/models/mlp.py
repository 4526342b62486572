"""Multi-layer perceptron."""

from __future__ import annotations

from math import prod

from torch import nn

from hwopt.models.layers import activation, norm
from hwopt.models.zoo import MlpOptions


def build(sample_shape: tuple[int, ...], classes: int, options: MlpOptions) -> nn.Module:
    """Flatten, then linear layers with batch norm and ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(sample_shape)
    for hidden in options.hidden:
        layers += [
            nn.Linear(width, hidden, bias=options.norm == "none"),
            *norm(options.norm, hidden, images=False),
            activation(options.activation),
        ]
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, classes))
