"""Networks with the couplings that users bring."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (3, 12, 12)


class Block(nn.Module):
    """One of several couplings, from ``cin`` channels to ``cout``."""

    def __init__(self, kind: str, cin: int, cout: int) -> None:
        super().__init__()
        self.kind = kind
        self.enter = nn.Conv2d(cin, cout, 3, padding=1, bias=kind != "residual")
        self.norm = nn.BatchNorm2d(cout)
        if kind == "residual":
            self.inner = nn.Conv2d(cout, cout, 3, padding=1)
        elif kind == "concat":
            self.left, self.right = nn.Conv2d(cout, 4, 1), nn.Conv2d(cout, 6, 3, padding=1)
        elif kind == "depthwise":
            self.depthwise = nn.Conv2d(cout, 2 * cout, 3, padding=1, groups=cout)
            self.point = nn.Conv2d(2 * cout, cout, 1)
        elif kind == "grouped":
            self.grouped = nn.Conv2d(cout, cout, 3, padding=1, groups=4)
        elif kind == "squeeze":
            self.down, self.up = nn.Conv2d(cout, 4, 1), nn.Conv2d(4, cout, 1)
        elif kind == "halves":
            self.last = nn.Conv2d(cout // 2, cout, 1)
        self.width = 10 if kind == "concat" else cout

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.enter(x)))
        if self.kind == "residual":
            return torch.relu(x + self.inner(x))
        if self.kind == "concat":
            return torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        if self.kind == "depthwise":
            return torch.relu(self.point(torch.relu(self.depthwise(x))))
        if self.kind == "grouped":
            return torch.relu(self.grouped(x))
        if self.kind == "squeeze":
            gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
            return x * torch.relu(gate)
        if self.kind == "halves":
            first, second = x.chunk(2, dim=1)
            return torch.relu(self.last(first * second))
        return x


KINDS = ("plain", "residual", "concat", "depthwise", "grouped", "squeeze", "halves")


class Random(nn.Module):
    """Blocks in a row, then a linear layer on pooled or on flattened maps."""

    def __init__(self, kinds: list[str], widths: list[int], *, flatten: bool) -> None:
        super().__init__()
        channels, blocks = SHAPE[0], []
        for kind, width in zip(kinds, widths, strict=True):
            blocks.append(Block(kind, channels, width))
            channels = blocks[-1].width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveMaxPool2d(2 if flatten else 1)
        self.head = nn.Linear(channels * (4 if flatten else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.pool(self.blocks(x)).flatten(1))
        return result


class Attention(nn.Module):
    """Self-attention over a sequence, its heads counted by an attribute."""

    def __init__(self, width: int = 32, heads: int = 4, *, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.fused = heads, fused
        self.enter = nn.Linear(6, width)
        self.position = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 48), nn.Linear(48, width)
        self.head = nn.Linear(width, 5)
        self.head_dim = width // heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.position
        b, n, _ = x.shape
        if self.fused:
            parts = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (
                layer(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.out(mixed.transpose(1, 2).reshape(b, n, -1)))
        x = x + self.down(torch.relu(self.up(x)))
        result: Tensor = self.head(x.mean(1))
        return result


class Recurrent(nn.Module):
    """A recurrent layer, then a linear one on its last state."""

    def __init__(self, kind: str, *, layers: int = 1, both: bool = False) -> None:
        super().__init__()
        make = nn.LSTM if kind == "lstm" else nn.GRU
        self.cell = make(6, 24, num_layers=layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(48 if both else 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.cell(x)[0].mean(1))
        return result


class Fixed(nn.Module):
    """A forward function that names a width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).view(-1, 8, 12, 12)
        result: Tensor = self.head(torch.relu(self.second(x)).mean((2, 3)))
        return result
