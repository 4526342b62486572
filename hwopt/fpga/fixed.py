"""Numbers as a circuit holds them: integers with powers of two, and what can be done to them without rounding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwopt.errors import StageFailedError

Int = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]


class NotExactError(Exception):
    """What no integer arithmetic expresses; becomes a ConfigError where the operator is known."""

    def __init__(self, text: str, fix: str | None = None) -> None:
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Fixed:
    """Values ``m·2^e·s/d``: mantissas of any shape, exponents that broadcast to them, one divisor.

    ``s`` is 1 where scales are powers of two. Another scale never becomes arithmetic in the circuit: it is part of
    the thresholds of the next quantizer, with which the integer m is compared.
    """

    m: Int
    e: Int
    d: int = 1
    s: Real = field(default_factory=lambda: np.ones(()))

    @property
    def scale(self) -> Real:
        """What a step of m is worth."""
        found: Real = np.ldexp(self.s, self.e.astype(np.int32)) / self.d
        return found

    @property
    def shifts(self) -> bool:
        """Whether scales are powers of two."""
        return bool((self.s == 1).all())

    def value(self) -> npt.NDArray[np.float64]:
        """As float64."""
        found: Real = np.ldexp(self.m.astype(np.float64), self.e.astype(np.int32)) * self.s / self.d
        return found


def exponent_of(scale: npt.ArrayLike) -> Int:
    """The powers of two that scales are.

    Raises:
        NotExactError: one is not.
    """
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    if not (mantissa == 0.5).all():
        worst = float(np.asarray(scale).ravel()[int(np.argmax(mantissa.ravel() != 0.5))])
        raise NotExactError(
            f"the scale {worst:g} is no power of two, and a shift cannot apply it",
            "quantize for an FPGA profile, whose scales are powers of two",
        )
    return (exponent - 1).astype(np.int64)


def split(scale: npt.ArrayLike) -> tuple[Int, Real]:
    """Scales as powers of two, or as they are where one is none."""
    real = np.asarray(scale, np.float64)
    try:
        return exponent_of(real), np.ones(())
    except NotExactError:
        return np.zeros((), np.int64), real


def divide_half_even(m: Int, divisor: Int | int) -> Int:
    """``m / divisor`` rounded to the nearest integer, ties to even."""
    quotient, rest = np.floor_divide(m, divisor), np.mod(m, divisor)
    twice = 2 * rest
    up = (twice > divisor) | ((twice == divisor) & (quotient % 2 != 0))
    rounded: Int = quotient + up
    return rounded


def along(values: Any, axis: int, ndim: int) -> Any:
    """Per-channel values in the shape that broadcasts along ``axis``."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def shifted(m: Int, by: Int) -> Int:
    """``m << by`` with room to spare.

    Raises:
        StageFailedError: a mantissa would leave 62 bits.
    """
    if m.size and np.size(by):
        most = int(np.abs(m).max())
        if most and most.bit_length() + int(np.max(by)) > 62:
            raise StageFailedError(
                "scales of one sum lie too far apart for 62 bits",
                fix="quantize with scales nearer to each other",
            )
    found: Int = m << np.minimum(by, 62)
    return found


def one_exponent(x: Fixed) -> Fixed:
    """The same values with a single exponent, the least of them."""
    if x.s.size > 1:
        raise NotExactError(
            "channels with scales that are no powers of two meet", "put a quantizer behind the layer before"
        )
    s = x.s.reshape(())
    if x.e.size == 1:
        return Fixed(x.m, x.e.reshape(()), x.d, s)
    least = x.e.min()
    return Fixed(shifted(x.m, x.e - least), np.asarray(least), x.d, s)


def added(a: Fixed, b: Fixed) -> Fixed:
    """Their sum.

    Raises:
        NotExactError: no shift aligns their scales.
    """
    if not (a.shifts and b.shifts):
        if not np.allclose(a.scale, b.scale, rtol=1e-6, atol=0):
            raise NotExactError(
                "summands have scales that no shift aligns",
                "quantize with power-of-two scales, or give both one scale",
            )
        return replace(a, m=a.m + b.m)
    e = np.minimum(a.e, b.e)
    return Fixed(shifted(a.m, a.e - e) + shifted(b.m, b.e - e), e)
