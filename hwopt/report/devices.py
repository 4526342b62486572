"""Plots across devices, and inside an FPGA design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, Final

from markupsafe import Markup

from hwopt.report.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    front,
    line,
    points,
    short,
    text,
    ticks,
)

_ROW: Final = 16.0
_MOST: Final = 60  # layers that a figure shows


def across(record: Mapping[str, Any]) -> Markup | None:
    """Accuracy against latency of every version on every device, one logarithmic axis; None for one device."""
    by_target = {t: points(record, t) for t in dict.fromkeys(r["target"] for r in record["results"])}
    by_target = {t: found for t, found in by_target.items() if found}
    if len(by_target) < 2:
        return None
    every = [p for found in by_target.values() for p in found]
    low = floor(log10(min(p.x_low for p in every)))
    high = max(low + 1, ceil(log10(max(p.x_high for p in every))))
    marks = ticks(min(p.y_low for p in every), max(p.y_high for p in every))

    def px(x: float) -> float:
        return LEFT + (log10(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - marks[0]) / (marks[-1] - marks[0]) * (HEIGHT - TOP - BOTTOM)

    said = "; ".join(
        f"{p.name} on {t}: {p.y:.2f} % at {p.x:.4g} ms, {p.tier}"
        for t, found in by_target.items()
        for p in found
    )
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="plot">').format(
            WIDTH, HEIGHT, "Accuracy against latency on all devices. " + said
        )
    ]
    for power in range(low, high + 1):
        parts.append(line(px(10.0**power), TOP, px(10.0**power), HEIGHT - BOTTOM, "grid"))
        parts.append(text(px(10.0**power), HEIGHT - BOTTOM + 18, short(10.0**power), "middle"))
    for mark in marks:
        parts.append(line(LEFT, py(mark), WIDTH - RIGHT, py(mark), "grid"))
        parts.append(text(LEFT - 8, py(mark) + 4, short(mark), "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "latency, ms, logarithmic", "middle"))
    parts.append(text(LEFT, TOP - 12, "accuracy, %", "middle"))
    for a, b in pairwise(front(every)):
        parts.append(line(px(a.x), py(a.y), px(b.x), py(b.y), "front"))
    for target, found in by_target.items():
        for p in found:
            parts += _dot(p, px, py)
        # One name a device, at its fastest version.
        first = min(found, key=lambda p: p.x)
        parts.append(text(px(first.x), py(first.y) - 12, target, "middle"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _dot(p: Point, px: Any, py: Any) -> list[Markup]:
    kind = f"point {p.tier}" + (" chosen" if p.chosen else "")
    return [
        line(px(p.x_low), py(p.y), px(p.x_high), py(p.y), "whisker"),
        line(px(p.x), py(p.y_low), px(p.x), py(p.y_high), "whisker"),
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="{}"/>').format(px(p.x), py(p.y), kind),
    ]


def balance(layers: Sequence[Mapping[str, Any]], interval: float) -> Markup:
    """A bar a layer: its cycles as a share of the interval between frames. Full bars are the bottleneck."""
    rows = list(layers)[:_MOST]
    left, right = 190.0, 90.0
    height = 8 + _ROW * len(rows) + 8
    said = "; ".join(f"{r['layer']}: {r['cycles']} cycles" for r in rows)
    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, height, f"Cycles of each layer for a frame, of {interval:.0f}. " + said
        )
    ]
    for index, row in enumerate(rows):
        y = 8 + _ROW * index
        share = min(1.0, row["cycles"] / interval) if interval else 0.0
        parts.append(text(left - 6, y + 11, str(row["layer"])[-28:], "end"))
        parts.append(
            Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="point"/>').format(
                left, y + 2, max(1.0, share * (WIDTH - left - right)), _ROW - 5
            )
        )
        folding = f"{row['cycles']:,}" + (f" · {row['pe']}×{row['simd']}" if row.get("weight_bits") else "")
        parts.append(text(left + share * (WIDTH - left - right) + 6, y + 11, folding, "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)
