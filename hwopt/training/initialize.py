"""Initial weights by the rules of the field."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def initialize(module: nn.Module, rule: Literal["he", "xavier", "orthogonal"], seed: int) -> int:
    """Draw the matrices of linear and convolution layers anew; biases become zero. Returns how many.

    Recurrent cells get xavier for what comes in and orthogonal for what goes round; norms and embeddings keep
    theirs.

    Reference:
        he: He et al., ICCV 2015, equation 10; xavier: Glorot and Bengio, AISTATS 2010, equation 16;
        orthogonal: Saxe et al., ICLR 2014, section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with torch.no_grad():
        for owner in module.modules():
            if isinstance(owner, _LAYERS):
                _draw(owner.weight, rule, generator)
                count += 1
                if owner.bias is not None:
                    owner.bias.zero_()
            elif isinstance(owner, nn.RNNBase):
                for name, parameter in owner.named_parameters():
                    if "weight_ih" in name:
                        nn.init.xavier_uniform_(parameter, generator=generator)
                    elif "weight_hh" in name:
                        for gate in parameter.split(owner.hidden_size):
                            nn.init.orthogonal_(gate, generator=generator)
                count += 1
    return count


def _draw(weight: Tensor, rule: str, generator: torch.Generator) -> None:
    if rule == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    elif rule == "xavier":
        nn.init.xavier_normal_(weight, generator=generator)
    else:
        nn.init.orthogonal_(weight, gain=2.0**0.5, generator=generator)
