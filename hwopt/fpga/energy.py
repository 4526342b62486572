"""Energy of a frame, from the watts of the board or from counted actions."""

from __future__ import annotations

from collections.abc import Sequence

from hwopt.core.canonical import JSON
from hwopt.core.fpga import Power
from hwopt.fpga.design import Unit


def energy(units: Sequence[Unit], power: Power, seconds: float) -> dict[str, JSON]:
    """Microjoules of a single frame, each part apart; what no source gives is null and said.

    The board's watts times the frame's time is the whole where they are known: on boards of two watts they
    differ by a tenth between designs whose work differs a thousandfold (MLPerf Tiny v0.7). Elsewhere it is the
    static share of the chip and the bits that cross to off-chip memory; no source that we know gives the
    energy of an operation in a fabric.
    """
    off_chip = sum(u.off_chip_bytes for u in units) * 8
    parts: dict[str, float | None] = {
        "static_uj": None if power.static_w is None else power.static_w * seconds * 1e6,
        "off_chip_uj": None if power.pj_per_dram_bit is None else off_chip * power.pj_per_dram_bit * 1e-6,
    }
    if power.board_w is not None:
        return {
            "uj": power.board_w * seconds * 1e6,
            "basis": "the board's watts times the frame's time",
            **parts,
        }
    known = {name.removesuffix("_uj"): value for name, value in parts.items() if value is not None}
    if "static" not in known:
        return {"uj": None, "basis": "no source gives the watts of this device", **parts}
    basis = f"{' and '.join(known).replace('_', '-')}, without the arithmetic, which no source prices"
    return {"uj": sum(known.values()), "basis": basis, **parts}
