"""Bars and the roofline as SVG, coloured by the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any, Final

from markupsafe import Markup

from hwopt.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line, short, text

_ROW: Final = 18.0
_MOST: Final = 14


def operator_times(mine: Mapping[str, float], floats: Mapping[str, float] | None, name: str) -> Markup:
    """Two bars a family of operators: the float model's and this version's, in microseconds; measured."""
    before = floats or {}
    # The name decides between equals: sets have no order, and a report is the same bytes every time.
    families = sorted({*mine, *before}, key=lambda f: (-max(mine.get(f, 0.0), before.get(f, 0.0)), f))[:_MOST]
    if not families:
        return Markup("")
    most = max(max(mine.get(f, 0.0), (floats or {}).get(f, 0.0)) for f in families) or 1.0
    left, right, each = 150.0, 90.0, _ROW * (2 if floats else 1) + 6
    height = each * len(families) + 8
    said = "; ".join(
        f"{f}: {mine.get(f, 0.0):.1f} µs" + (f", float {floats.get(f, 0.0):.1f} µs" if floats else "")
        for f in families
    )
    parts = [_open(height, f"Time of operators in {name}. {said}")]
    for index, family in enumerate(families):
        y = 4 + each * index
        parts.append(text(left - 8, y + 13, family[:22], "end"))
        bars = [("float", floats.get(family, 0.0))] if floats is not None else []
        for number, (kind, value) in enumerate([*bars, (name, mine.get(family, 0.0))]):
            width = value / most * (WIDTH - left - right)
            style = "bar-before" if kind == "float" and number == 0 and floats is not None else "point"
            top = y + _ROW * number
            parts.append(_rect(left, top, max(1.0, width), _ROW - 5, style))
            parts.append(text(left + width + 6, top + 11, f"{value:.1f} µs {kind[:12]}", "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def layers(rows: Sequence[tuple[str, float, str]], what: str) -> Markup:
    """A bar a layer: name, value from 0 to 1, words beside it."""
    if not rows:
        return Markup("")
    left, right = 170.0, 190.0
    height = _ROW * len(rows) + 8
    parts = [_open(height, what + ". " + "; ".join(f"{n}: {w}" for n, _, w in rows))]
    for index, (name, value, words) in enumerate(rows):
        y = 4 + _ROW * index
        width = max(1.0, min(1.0, value) * (WIDTH - left - right))
        parts.append(text(left - 8, y + 11, name[-24:], "end"))
        parts.append(_rect(left, y, width, _ROW - 6, "point"))
        parts.append(text(left + width + 6, y + 11, words, "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def roofline(found: Mapping[str, Any] | None, p50_ms: float | None, batch: int) -> Markup:
    """What the device could do at most for each kernel, and what the whole model reaches.

    The roof is the device's figures (Williams et al., CACM 2009: the lesser of peak arithmetic and intensity times
    bandwidth); hollow dots are kernels on their roof, the filled one is measured.
    """
    if not found or not found.get("kernels"):
        return Markup("")
    kernels = [k for k in found["kernels"] if k["ops"] and k["bytes"]]
    peaks, bandwidth = found["peak_gops"], found["bandwidth_gbs"]
    dots = [
        (k["name"], k["ops"] / k["bytes"], min(peaks[_roof(k)], k["ops"] / k["bytes"] * bandwidth))
        for k in kernels
    ]
    if not dots:
        return Markup("")
    ops, moved = sum(k["ops"] for k in kernels), sum(k["bytes"] for k in kernels)
    whole = None if not p50_ms else (ops / moved, ops * batch / (p50_ms * 1e6))
    xs = [x for _, x, _ in dots] + [peak / bandwidth for peak in peaks.values()]
    ys = [y for _, _, y in dots] + list(peaks.values()) + ([whole[1]] if whole else [])
    x0, x1 = floor(log10(min(xs)) - 0.2), ceil(log10(max(xs)) + 0.2)
    y0, y1 = floor(log10(min(ys)) - 0.2), ceil(log10(max(ys)))

    def px(x: float) -> float:
        return LEFT + (log10(x) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (log10(y) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    said = (
        f"the whole model reaches {whole[1]:.3g} giga operations a second, measured"
        if whole
        else "nothing measured"
    )
    parts = [_open(HEIGHT, f"Roofline on {found['device']}: {said}")]
    for power in range(x0, x1 + 1):
        parts += [
            line(px(10.0**power), TOP, px(10.0**power), HEIGHT - BOTTOM, "grid"),
            text(px(10.0**power), HEIGHT - BOTTOM + 18, short(10.0**power), "middle"),
        ]
    for power in range(y0, y1 + 1):
        parts += [
            line(LEFT, py(10.0**power), WIDTH - RIGHT, py(10.0**power), "grid"),
            text(LEFT - 8, py(10.0**power) + 4, short(10.0**power), "end"),
        ]
    for dtype, peak in peaks.items():
        ridge = peak / bandwidth
        low = 10.0**x0
        if low * bandwidth > 10.0**y0:
            start = low
        else:
            start = 10.0**y0 / bandwidth
        parts += [
            line(px(start), py(start * bandwidth), px(ridge), py(peak), "roof"),
            line(px(ridge), py(peak), px(10.0**x1), py(peak), "roof"),
            text(px(10.0**x1) + 6, py(peak) + 4, dtype, "start"),
        ]
    for _, x, y in dots:
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="point estimated"/>').format(px(x), py(y))
        )
    if whole:
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="point measured"/>').format(
                px(whole[0]), py(whole[1])
            )
        )
        parts.append(text(px(whole[0]) + 9, py(whole[1]) + 4, "whole model, measured", "start"))
    parts += [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "operations a byte", "middle"),
        text(4, TOP - 12, "giga operations a second", "start"),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def _roof(kernel: Mapping[str, Any]) -> str:
    return "int8" if kernel["dtype"] == "int8" else "fp32"


def _open(height: float, label: str) -> Markup:
    return Markup('<svg class="plot" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(
        WIDTH, height, label
    )


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>').format(
        x, y, width, height, kind
    )
