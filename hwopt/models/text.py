"""Networks for token sequences: recurrent with attention, and a small transformer.

Padding is token 0 behind the text. It changes nothing: what a network says of a text is independent of how far
it was padded, so that training may pad and a device need not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.core.dataset import tokens_of
from hwopt.errors import ConfigError
from hwopt.models.zoo import TextRnnOptions, TransformerOptions

_NEVER = -1e4  # added to the scores of padding; far below any score, and no infinity for integer arithmetic


def _vocabulary(sample_shape: tuple[int, ...], model: str) -> int:
    tokens = tokens_of(sample_shape)
    if not tokens:
        raise ConfigError(
            f"the model {model!r} takes token sequences, and the samples have shape {list(sample_shape)}",
            fix="choose data that is text, such as name: jsonl",
        )
    return tokens


class Attention(nn.Module):
    """A weighted mean over the positions: Bahdanau et al., ICLR 2015, with a learnt query."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.score = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """N×L×W and N×L (0 at texts, very negative at padding) to N×W."""
        scores = self.score(torch.tanh(self.inner(states))).squeeze(2) + padding
        weights = torch.softmax(scores, 1)
        return torch.matmul(weights.unsqueeze(1), states).squeeze(1)


class TextRnn(nn.Module):
    """Embedding, a recurrent layer in each direction, attention, one linear layer."""

    def __init__(self, tokens: int, classes: int, options: TextRnnOptions) -> None:
        super().__init__()
        kind = nn.LSTM if options.cell == "lstm" else nn.GRU
        self.embedding = nn.Embedding(tokens, options.embedding, padding_idx=0)
        self.forwards = kind(options.embedding, options.hidden, batch_first=True)
        self.backwards = kind(options.embedding, options.hidden, batch_first=True)
        self.attention = Attention(2 * options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.classify = nn.Linear(2 * options.hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """N×L token ids to N×classes."""
        text = ids != 0
        # Each text turned round by itself, so that the backward direction starts at its last word.
        place = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        length = text.sum(1, keepdim=True)
        turned = torch.where(place < length, length - 1 - place, place).unsqueeze(2)
        words = self.dropout(self.embedding(ids))
        ahead, _ = self.forwards(words)
        back, _ = self.backwards(words.gather(1, turned.expand(-1, -1, words.shape[2])))
        back = back.gather(1, turned.expand(-1, -1, back.shape[2]))
        padding = torch.where(text, 0.0, _NEVER)
        logits: Tensor = self.classify(self.dropout(self.attention(torch.cat([ahead, back], 2), padding)))
        return logits


class Block(nn.Module):
    """A transformer layer, norm first: Vaswani et al., NeurIPS 2017; Xiong et al., ICML 2020."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """N×L×W and N×1×1×L to N×L×W."""
        n, length, width = x.shape
        y = self.norm(x)
        q, k, v = (
            part(y).view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=padding)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(n, length, width)))
        result: Tensor = x + self.dropout(self.feed(self.norm2(x)))
        return result


class Transformer(nn.Module):
    """Embedding with sine positions, blocks, masked mean, one linear layer."""

    def __init__(self, tokens: int, classes: int, options: TransformerOptions) -> None:
        super().__init__()
        width = options.width
        if width % (2 * options.heads):
            raise ConfigError(
                f"a width of {width} cannot be shared by {options.heads} heads of an even size",
                fix=f"use a width of {2 * options.heads * max(1, round(width / (2 * options.heads)))}",
            )
        self.embedding = nn.Embedding(tokens, width, padding_idx=0)
        self.blocks = nn.ModuleList(
            Block(width, options.heads, options.dropout) for _ in range(options.layers)
        )
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, classes)
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        self.rate: Tensor
        self.register_buffer("rate", rate)

    def forward(self, ids: Tensor) -> Tensor:
        """N×L token ids to N×classes."""
        text = ids != 0
        angle = torch.arange(ids.shape[1], device=ids.device).unsqueeze(1) * self.rate
        x = self.embedding(ids) + torch.cat([torch.sin(angle), torch.cos(angle)], 1)
        padding = torch.where(text, 0.0, _NEVER)
        for block in self.blocks:
            x = block(x, padding.unsqueeze(1).unsqueeze(1))
        kept = text.to(x.dtype).unsqueeze(2)
        mean = (self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        logits: Tensor = self.classify(mean)
        return logits


def build_rnn(sample_shape: tuple[int, ...], classes: int, options: TextRnnOptions) -> nn.Module:
    """About 300,000 parameters with a vocabulary of 8,000."""
    return TextRnn(_vocabulary(sample_shape, "text_rnn"), classes, options)


def build_transformer(sample_shape: tuple[int, ...], classes: int, options: TransformerOptions) -> nn.Module:
    """About 400,000 parameters with a vocabulary of 8,000."""
    return Transformer(_vocabulary(sample_shape, "transformer"), classes, options)
