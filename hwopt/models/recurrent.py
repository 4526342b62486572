"""LSTM and GRU that keep the length of a sequence open when they are exported.

``torch.export`` unrolls recurrent modules to the length of its example. So before a network of token sequences
is traced, each becomes calls of one operator of our own, with a derivative and an ONNX form.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

_TO_TORCH = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}  # ONNX orders gates i o f c and z r h
_TO_ONNX = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # torch orders them i f c o and r z n


def _gates(weights: Tensor, hidden: int, order: tuple[int, ...]) -> Tensor:
    parts = weights.split(hidden)
    return torch.cat([parts[i] for i in order])


def _compute(x: Tensor, w: Tensor, r: Tensor, b: Tensor, kind: str) -> Tensor:
    hidden = r.shape[2]
    order = _TO_TORCH[kind]
    weights = [_gates(t, hidden, order) for t in (w[0], r[0], *b[0].chunk(2))]
    start = x.new_zeros(1, x.shape[0], hidden)
    if kind == "LSTM":
        return torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)[0]
    return torch.gru(x, start, weights, True, 1, 0.0, False, False, True)[0]


@torch.library.custom_op("hwopt::recurrent", mutates_args=())
def recurrent(x: Tensor, w: Tensor, r: Tensor, b: Tensor, kind: str) -> Tensor:
    """All outputs of one layer in one direction, from a zero state.

    Args:
        x: N×L×I. w: 1×gH×I, r: 1×gH×H, b: 1×2gH, gates in ONNX's order. kind: LSTM or GRU (with the linear
            transformation before the reset gate, as torch has it).
    Returns:
        N×L×H.
    """
    return _compute(x, w, r, b, kind)


@recurrent.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, b: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], r.shape[2])


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, ctx.kind = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """By computing the layer again: what torch keeps for it cannot leave the operator."""
    with torch.enable_grad():
        again = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        x, w, r, b = again
        return *torch.autograd.grad(_compute(x, w, r, b, ctx.kind), again, gradient), None


recurrent.register_autograd(_backward, setup_context=_save)


def onnx_recurrent(x: Any, w: Any, r: Any, b: Any, kind: str) -> Any:
    """The same as ONNX's LSTM or GRU."""
    steps: Any = op.Transpose(x, perm=[1, 0, 2])
    one: Any = [1]
    hidden = int(r.shape[2])
    if kind == "LSTM":
        outputs, _, _ = op.LSTM(steps, w, r, b, hidden_size=hidden)
    else:
        outputs, _ = op.GRU(steps, w, r, b, hidden_size=hidden, linear_before_reset=1)
    return op.Transpose(op.Squeeze(outputs, one), perm=[1, 0, 2])


TRANSLATIONS: dict[Any, Any] = {torch.ops.hwopt.recurrent.default: onnx_recurrent}


class _Open(nn.Module):
    """An LSTM or GRU module as calls of the operator: batch first, any layers and directions."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.cells = module

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """N×L×I to N×L×(directions·H); the state is not given out."""
        module = self.cells
        for layer in range(module.num_layers):
            outputs = []
            for direction in ("", "_reverse") if module.bidirectional else ("",):
                given = x.flip(1) if direction else x
                found = torch.ops.hwopt.recurrent(given, *_stored(module, f"l{layer}{direction}"))
                outputs.append(found.flip(1) if direction else found)
            x = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
        return x, None


def _stored(module: nn.RNNBase, suffix: str) -> tuple[Tensor, Tensor, Tensor, str]:
    order = _TO_ONNX[module.mode]
    w, r = (module.get_parameter(f"weight_{part}_{suffix}") for part in ("ih", "hh"))
    hidden = module.hidden_size
    biases = (
        [module.get_parameter(f"bias_{part}_{suffix}") for part in ("ih", "hh")]
        if module.bias
        else [w.new_zeros(len(w))] * 2
    )
    b = torch.cat([_gates(bias, hidden, order) for bias in biases])
    return _gates(w, hidden, order)[None], _gates(r, hidden, order)[None], b[None], module.mode


def opened(module: nn.Module) -> nn.Module:
    """A copy whose LSTM and GRU modules keep their length open; the same numbers.

    Not for modules that are time first, project their output, or whose last state is read.
    """
    model = copy.deepcopy(module)
    if isinstance(model, nn.RNNBase):
        return _Open(model)
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.LSTM | nn.GRU) and child.batch_first and not child.proj_size:
                setattr(owner, name, _Open(child))
    return model
