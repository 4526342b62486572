"""Fake quantization with two faces: differentiable while training, Q/DQ operators while exporting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from hwopt.core.hardware import TensorScheme
from hwopt.numerics.observers import Observer

_ONNX_CONTAINERS = {  # the ONNX type that holds a code range, by (signed, fits in 8 bits)
    (True, True): torch.int8,
    (False, True): torch.uint8,
    (True, False): torch.int16,
    (False, False): torch.uint16,
}


_INT32 = 2.0**31 - 128  # the greatest float32 below 2^31


class Phase(StrEnum):
    """What a fake quantizer does with what flows through it."""

    OBSERVE = "observe"  # count it, pass it on unchanged
    QUANTIZE = "quantize"
    OFF = "off"  # pass it on; for measuring what single grids cost


class _RoundToGrid(torch.autograd.Function):
    """``(clamp(round(x/s) + z) - z)·s`` with the straight-through, LSQ and LSQ+ gradients.

    Esser et al., ICLR 2020 (LSQ), equations 1-3 and section 2.2: inside the range dx passes and ds is
    ``q - x/s``; outside dx is 0 and ds is the code at the end that was hit. Bhalgat et al., 2020 (LSQ+),
    equation 6: the zero point moves by the values outside only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, damp: float) -> Tensor:
        v = x / scale
        q = torch.round(v) + zero
        clamped = q.clamp(low, high)
        inside = q == clamped
        centered = clamped - zero
        ctx.save_for_backward(inside, centered - v * inside, scale)
        ctx.damp = damp
        return centered * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        inside, per_scale, scale = ctx.saved_tensors
        shape = scale.shape
        dx = grad * inside if ctx.needs_input_grad[0] else None
        ds = None
        if ctx.needs_input_grad[1]:
            ds = grad * per_scale
            axes = [i for i in range(ds.dim()) if i >= len(shape) or shape[i] == 1]
            ds = (ds.sum(axes, keepdim=True) if len(shape) else ds.sum()) * ctx.damp
            ds = ds.reshape(shape)
        dz = None
        if ctx.needs_input_grad[2]:  # inside the range the zero point cancels out
            dz = -(grad * ~inside * scale).sum().reshape(()) * ctx.damp
        return dx, ds, dz, None, None, None


class _RoundThrough(torch.autograd.Function):
    """Rounding with the straight-through gradient, for biases."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class FakeQuant(nn.Module):
    """One quantization grid.

    Args:
        scheme: type, code range, symmetry and granularity.
        axis: channel axis of the tensor for per-channel scales, else None.
        in_axis: for a weight in blocks, the axis that is cut into blocks of ``scheme.block``.
        shape: of the tensor, for scales per channel or block.
        power_of_two: scales are powers of two, learned ones by rounding their logarithm.
        ceiling: greatest value the tensor can hold (6 after ReLU6); the grid never reaches beyond it, so
            that a runtime may drop the clipping operator in front.
    """

    log2_scale: nn.Parameter
    zero_share: nn.Parameter

    def __init__(
        self,
        scheme: TensorScheme,
        *,
        axis: int | None = None,
        in_axis: int | None = None,
        shape: Sequence[int] = (),
        power_of_two: bool = False,
        ceiling: float | None = None,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.low, self.high = scheme.codes
        self.axis = axis
        self.in_axis = in_axis if scheme.block is not None else None
        self.power_of_two = power_of_two
        self.ceiling = ceiling
        if axis is None:
            scales: list[int] = []
        elif self.in_axis is None or scheme.block is None:
            scales = [size if i == axis else 1 for i, size in enumerate(shape)]
        else:
            scales = [shape[axis], shape[self.in_axis] // scheme.block, 1]
        # In the logarithm a step of Adam changes a scale by a share of itself, however small the scale is.
        self.log2_scale = nn.Parameter(torch.zeros(scales))
        # The zero point as a share of the code range, so that it learns at the pace of the scales; LSQ+ only.
        self.zero_share = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.set_zero_point(0)
        self.mode = Phase.QUANTIZE
        self.observer: Observer | None = None

    def effective_scale(self) -> Tensor:
        """The scale in use: positive, a power of two where asked for, below the ceiling."""
        exponent: Tensor = self.log2_scale
        if self.power_of_two:
            # The next power below a ceiling would lose up to half the range: the clipping operator stays.
            exponent = exponent + (torch.round(exponent) - exponent).detach()  # straight through, as TQT does
        elif self.ceiling is not None:
            # A hair below, so that rounding in the runtime does not reach beyond the ceiling.
            bound = math.log2(self.ceiling / (self.high - self.low)) - 1e-6
            exponent = exponent + (exponent.clamp_max(bound) - exponent).detach()
        return torch.exp2(exponent)

    def set_scale(self, scale: Tensor | float) -> None:
        """Set the scale, positive, of the shape that the granularity asks for."""
        with torch.no_grad():
            value = torch.as_tensor(scale, dtype=torch.float32)
            self.log2_scale.copy_(torch.log2(value).reshape(self.log2_scale.shape))

    @property
    def zero_point(self) -> Tensor:
        """The code that stands for zero: an integer inside the code range, as float."""
        span = self.high - self.low
        exact = self.low + self.zero_share * span
        return exact + (torch.round(exact).clamp(self.low, self.high) - exact).detach()

    def set_zero_point(self, code: int) -> None:
        """Set the code that stands for zero."""
        with torch.no_grad():
            self.zero_share.fill_((code - self.low) / (self.high - self.low))

    def learn_zero_point(self) -> None:
        """Let training move the zero point, where values lie on both sides of it.

        Bhalgat et al., CVPR Workshops 2020 (LSQ+), equations 3 and 6; the offset is held at whole codes, as
        integer runtimes need it.
        """
        two_sided = not self.scheme.symmetric and int(self.zero_point) not in {self.low, self.high}
        self.zero_share.requires_grad_(two_sided)

    def damping(self, elements: int) -> float:
        """LSQ's gradient scale, 1/sqrt(elements · high), section 2.2."""
        return float((elements * max(self.high, 1)) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        if torch.onnx.is_in_onnx_export():
            return self._export(x)
        if self.mode is Phase.OBSERVE:
            if self.observer is not None:
                self.observer.add(x.detach().cpu().numpy())
            return x
        if self.mode is Phase.OFF:
            return x
        elements = x.numel() // max(x.shape[0], 1) if self.axis is None else x.numel() // x.shape[self.axis]
        if self.training and torch.is_grad_enabled() and self.in_axis is None:
            return self._in_training(x, self.damping(elements))
        result: Tensor = _RoundToGrid.apply(
            self.in_rows(x),
            self.effective_scale(),
            self.zero_point,
            self.low,
            self.high,
            self.damping(elements),
        )
        return self.from_rows(result, x.shape)

    def _in_training(self, x: Tensor, damping: float) -> Tensor:
        """The same in one pass over memory, by ATen's kernels for learned scales and zero points.

        They multiply by the scale's inverse where ONNX divides: a value at a code's edge may fall on the
        other side. That does not matter to a step of training; what is evaluated and deployed divides.
        """
        scale, zero = self.effective_scale().flatten(), self.zero_point
        ends = (self.low, self.high, damping)
        if self.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, scale.reshape(1), zero.reshape(1), *ends
            )
        zeros = zero.expand(scale.shape).contiguous()
        return torch._fake_quantize_learnable_per_channel_affine(x, scale, zeros, self.axis, *ends)

    def in_rows(self, x: Tensor) -> Tensor:
        """A blocked weight with its blocks in an axis of their own; any other tensor as it is."""
        if self.axis is None or self.in_axis is None or self.scheme.block is None:
            return x
        moved = x.movedim((self.axis, self.in_axis), (0, 1))
        return moved.reshape(moved.shape[0], -1, self.scheme.block)

    def from_rows(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of ``in_rows``."""
        if self.axis is None or self.in_axis is None or self.scheme.block is None:
            return rows
        return rows.reshape(shape[self.axis], shape[self.in_axis]).movedim((0, 1), (self.axis, self.in_axis))

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of a constant, in the container type that ONNX stores."""
        q = torch.round(self.in_rows(x) / self.effective_scale()) + self.zero_point
        return self.from_rows(q.clamp(self.low, self.high), x.shape).to(self.container)

    @property
    def container(self) -> torch.dtype:
        """The ONNX type that holds the codes: 1 to 8 bits live in (u)int8."""
        return _ONNX_CONTAINERS[(self.scheme.type.signed, self.scheme.type.bits <= 8)]

    def _export(self, x: Tensor) -> Tensor:
        info = torch.iinfo(self.container)
        scale = self.effective_scale().detach().reshape(())
        zero = self.zero_point.detach().to(self.container)
        if (self.low, self.high) != (info.min, info.max):
            # QuantizeLinear saturates at the container's ends, so a narrower range is clipped first.
            ends = [(end - self.zero_point.detach()) * scale for end in (self.low, self.high)]
            x = torch.onnx.ops.symbolic("Clip", (x, *ends), dtype=torch.float32, shape=x.shape)
        q = torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=self.container, shape=x.shape)
        result: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear", (q, scale, zero), dtype=torch.float32, shape=x.shape
        )
        return result


class DynamicQuant(nn.Module):
    """uint8 on the range that the tensor has just then, zero included.

    ONNX operator DynamicQuantizeLinear, version 11: scale = (max - min)/255, zero point = round(-min/scale).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on its own grid; DynamicQuantizeLinear while exporting."""
        if torch.onnx.is_in_onnx_export():
            q, scale, zero = torch.onnx.ops.symbolic_multi_out(
                "DynamicQuantizeLinear",
                (x,),
                dtypes=(torch.uint8, torch.float32, torch.uint8),
                shapes=(x.shape, (), ()),
            )
            result: Tensor = torch.onnx.ops.symbolic(
                "DequantizeLinear", (q, scale, zero), dtype=torch.float32, shape=x.shape
            )
            return result
        low, high = x.detach().amin().clamp_max(0.0), x.detach().amax().clamp_min(0.0)
        scale = ((high - low) / 255).clamp_min(1e-30)
        zero = torch.round(-low / scale).clamp(0, 255)
        one = torch.ones((), dtype=x.dtype)
        on_grid: Tensor = _RoundToGrid.apply(x, scale * one, zero, 0, 255, 0.0)
        return on_grid


class BiasQuant(nn.Module):
    """A bias on the grid of its accumulator: int32 at ``input scale × weight scale``, zero point 0.

    Jacob et al., CVPR 2018, section 2.4.
    """

    def __init__(self, activation: FakeQuant, weight: FakeQuant) -> None:
        super().__init__()
        self._grids = (activation, weight)  # a tuple, so that they are not registered twice

    @property
    def scale(self) -> Tensor:
        """Shape (channels,) or scalar."""
        activation, weight = self._grids
        return (activation.effective_scale() * weight.effective_scale().flatten()).detach()

    def make_room(self, bias: Tensor) -> None:
        """Raise weight scales until every code of ``bias`` stays below 2^30."""
        activation, weight = self._grids
        with torch.no_grad():
            least = torch.log2(bias.detach().abs().clamp_min(1e-30) / activation.effective_scale()) - 30
            if weight.axis is None:
                least = least.max()
            shape = weight.log2_scale.shape
            weight.log2_scale.copy_(torch.maximum(weight.log2_scale, torch.ceil(least).reshape(shape)))

    def forward(self, bias: Tensor) -> Tensor:
        """``bias`` on the accumulator's grid."""
        if any(grid.mode is not Phase.QUANTIZE for grid in self._grids):
            return bias
        scale = self.scale
        # The clamp only meets biases beyond the accumulator, which the deployed model cannot hold either.
        result: Tensor = _RoundThrough.apply(bias / scale).clamp(-_INT32, _INT32) * scale
        return result

    def codes(self, bias: Tensor) -> Tensor:
        """int32 codes."""
        return torch.round(bias / self.scale).clamp(-_INT32, _INT32).to(torch.int32)


class Constant(nn.Module):
    """A constant that is stored as integers: a weight or a bias of the deployed model.

    ``axis`` is that of the scales; with ``block``, the axis whose blocks share one, and ``scale`` has the
    rank of ``codes``.
    """

    def __init__(self, codes: Tensor, scale: Tensor, axis: int | None, block: int | None = None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.detach().clone())
        self.axis = axis
        self.block = block

    def forward(self) -> Tensor:
        """The float value; a DequantizeLinear while exporting."""
        codes, scale = self.get_buffer("codes"), self.get_buffer("scale")
        if torch.onnx.is_in_onnx_export():
            zero = torch.zeros(scale.shape, dtype=codes.dtype)
            attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
            if self.block is not None:
                attributes["block_size"] = self.block
            result: Tensor = torch.onnx.ops.symbolic(
                "DequantizeLinear", (codes, scale, zero), attributes, dtype=torch.float32, shape=codes.shape
            )
            return result
        if self.block is not None and self.axis is not None:
            scale = scale.repeat_interleave(self.block, dim=self.axis)
        elif self.axis is not None:
            scale = scale.reshape([-1 if i == self.axis else 1 for i in range(codes.dim())])
        return codes.to(torch.float32) * scale
