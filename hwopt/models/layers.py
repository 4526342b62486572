"""Norms and activations by name, for the networks of the zoo."""

from __future__ import annotations

from torch import Tensor, nn

from hwopt.models.zoo import Activation, Norm

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class ChannelNorm(nn.Module):
    """Layer norm over the channels of images, at every position by itself; independent of the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to the same."""
        result: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


def norm(kind: Norm, channels: int, *, images: bool) -> list[nn.Module]:
    """What follows a layer: nothing, or a norm over its channels."""
    if kind == "none":
        return []
    if kind == "layer":
        return [ChannelNorm(channels) if images else nn.LayerNorm(channels)]
    return [nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels)]


def activation(kind: Activation) -> nn.Module:
    """Element by element."""
    return _ACTIVATIONS[kind]()
