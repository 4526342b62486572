"""Learning-rate schedules: pure functions from progress to a factor on the base rate.

``t`` is the share of steps done, 0 at the first step and 1 after the last; warm-up is laid over any of them
by ``warm_up``.
"""

from __future__ import annotations

from math import cos, pi


def constant(t: float) -> float:
    """1 throughout."""
    return 1.0


def linear(t: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - t


def cosine(t: float) -> float:
    """From 1 to 0 along half a cosine.

    Reference:
        Loshchilov and Hutter, ICLR 2017 (SGDR), equation 5 without restarts.
    """
    return 0.5 * (1 + cos(pi * t))


def one_cycle(t: float) -> float:
    """Up from 1/25 to 1 over the first 30 %, down to 1e-4/25 over the rest, both along a cosine.

    Reference:
        Smith and Topin, 2018 (super-convergence); constants as in torch's OneCycleLR.
    """
    rise, start, end = 0.3, 1 / 25, 1e-4 / 25
    if t < rise:
        return start + (1 - start) * 0.5 * (1 - cos(pi * t / rise))
    return end + (1 - end) * 0.5 * (1 + cos(pi * (t - rise) / (1 - rise)))


def step(t: float) -> float:
    """A tenth after one half and again after three quarters, as in He et al., CVPR 2016, section 4.2."""
    return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01


def warm_up(index: int, steps: int) -> float:
    """Linear warm-up factor of step ``index`` (from 0): non-zero at once, 1 from step ``steps - 1`` on.

    Reference:
        Goyal et al., 2017, section 2.2 (gradual warm-up).
    """
    return min(1.0, (index + 1) / steps) if steps > 0 else 1.0
