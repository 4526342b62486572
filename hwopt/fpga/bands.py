"""How far designs that were built lie from the formulas: the intervals that every estimate carries.

The figures are residuals on published designs, made by ``python -m benchmarks.fpga streaming`` and ``overlay`` and
listed one by one in docs/results/fpga.md. Nothing is fitted to a single design.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hwopt.core.measurement import Interval


@dataclass(frozen=True, slots=True)
class Band:
    """Truth over estimate: ``low`` to ``high`` holds nine designs of ten."""

    low: float
    high: float

    def around(self, estimate: float) -> Interval:
        """The interval of an estimate."""
        return Interval(estimate, estimate * self.low, estimate * self.high)


OTHER_TABLES: Final = Band(0.78, 1.1)  # of tables with other than six inputs, for which we have three designs
EXACT: Final = Band(1.0, 1.0)
LATENCY: Final = Band(0.87, 1.15)  # of a streaming design, its driver apart
OVERLAY: Final = Band(0.83, 1.20)  # of an overlay's frame
RESOURCES: Final = {
    "finn": {"lut": Band(0.6, 1.7), "ff": Band(0.6, 2.0)},
    "hls4ml": {"lut": Band(0.5, 2.1), "ff": Band(0.45, 2.6), "dsp": Band(0.95, 1.05)},
    "hls4ml at RF 1": {"lut": Band(0.5, 2.1), "ff": Band(0.45, 2.6), "dsp": Band(0.45, 1.05)},
    "fpgaconvnet": {"lut": Band(0.55, 1.9), "ff": Band(0.5, 2.0), "dsp": Band(0.95, 1.1)},
    "unrolled": {"lut": Band(0.95, 1.05), "ff": Band(0.9, 1.05)},
    "unrolled without da4ml": {"lut": Band(0.75, 1.35), "ff": Band(0.4, 2.5)},
}


def of(flow: str, name: str) -> Band:
    """The band of one resource; what follows from the mapping alone is exact."""
    return RESOURCES.get(flow, {}).get(name, EXACT)
