"""Accuracy against latency as SVG, coloured by the page's style so that it follows dark and light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 110, 28, 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One version: position, interval of both axes, tier."""

    name: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    tier: str
    chosen: bool


def points(record: Mapping[str, Any], target: str, axis: str = "latency") -> list[Point]:
    """Rows of a target that have both numbers; ``axis`` is latency (ms) or size (kB)."""
    found = []
    for r in record["results"]:
        latency, accuracy = r["latency_ms"], r["accuracy"]
        if axis == "size" and r["file_bytes"]:
            latency = {"p50": r["file_bytes"] / 1000}
        if r["target"] != target or latency is None or accuracy is None:
            continue
        interval = r["details"].get("evaluation", {}).get("accuracy_interval", {})
        found.append(
            Point(
                name=r["candidate"],
                x=latency["p50"],
                x_low=latency.get("low") or latency["p50"],
                x_high=latency.get("high") or latency["p50"],
                y=accuracy * 100,
                y_low=interval.get("low", accuracy) * 100,
                y_high=interval.get("high", accuracy) * 100,
                tier=r["tier"] if axis == "latency" else "measured",
                chosen=record["choice"].get(target) == r["candidate"],
            )
        )
    return found


def front(every: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both axes, from the least on."""
    found: list[Point] = []
    for p in sorted(every, key=lambda p: (p.x, -p.y)):
        if not found or p.y > found[-1].y:
            found.append(p)
    return found


def scatter(data: Sequence[Point], x_name: str = "p50 latency, ms", y_name: str = "accuracy") -> Markup:
    """A share against ``x_name``; an empty string where there is nothing to show."""
    if not data:
        return Markup("")
    x_ticks = ticks(0.0, max(p.x_high for p in data))
    y_ticks = ticks(min(p.y_low for p in data), max(p.y_high for p in data))
    x0, x1, y0, y1 = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    summary = "; ".join(f"{p.name}: {p.y:.2f} % at {p.x:.4g}, {p.tier}" for p in data)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="plot">').format(
            WIDTH, HEIGHT, f"{y_name.capitalize()} against {x_name}. {summary}"
        )
    ]
    for tick in x_ticks:
        parts.append(line(px(tick), TOP, px(tick), HEIGHT - BOTTOM, "grid"))
        parts.append(text(px(tick), HEIGHT - BOTTOM + 18, short(tick), "middle"))
    for tick in y_ticks:
        parts.append(line(LEFT, py(tick), WIDTH - RIGHT, py(tick), "grid"))
        parts.append(text(LEFT - 8, py(tick) + 4, short(tick), "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    parts.append(text(LEFT, TOP - 12, f"{y_name}, %", "middle"))
    for a, b in pairwise(front(data)):
        parts.append(line(px(a.x), py(a.y), px(b.x), py(b.y), "front"))
    labels: list[tuple[float, float]] = []
    for p in sorted(data, key=lambda p: (-p.y, p.x)):
        kind = f"point {p.tier}" + (" chosen" if p.chosen else "")
        parts.append(line(px(p.x_low), py(p.y), px(p.x_high), py(p.y), "whisker"))
        parts.append(line(px(p.x), py(p.y_low), px(p.x), py(p.y_high), "whisker"))
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="{}"/>').format(px(p.x), py(p.y), kind)
        )
        label_y = py(p.y) - 6
        while any(abs(label_y - y) < 14 and abs(px(p.x) - x) < 120 for x, y in labels):
            label_y += 14  # labels of neighbours stand below each other
        labels.append((px(p.x), label_y))
        parts.append(text(px(p.x) + 9, label_y, p.name, "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def sensitivity(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """What is lost when one group is cut alone: a row a group, a dot a ratio, the larger the more is cut."""
    if not rows:
        return None
    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    left, row_height, right = 130.0, 18.0, 20.0
    height = TOP + row_height * len(layers) + BOTTOM
    marks = ticks(min(0.0, *(float(r["drop"]) for r in rows)), max(float(r["drop"]) for r in rows))
    low, high = marks[0], marks[-1]

    def px(drop: float) -> float:
        return left + (drop - low) / (high - low) * (WIDTH - left - right)

    def py(layer: str) -> float:
        return TOP + row_height * (layers.index(layer) + 0.5)

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, height, "accuracy lost when one group of channels is cut alone"
        )
    ]
    for mark in marks:
        parts.append(line(px(mark), TOP, px(mark), height - BOTTOM, "grid"))
        parts.append(text(px(mark), height - BOTTOM + 16, short(mark * 100), "middle"))
    parts.append(text((WIDTH + left) / 2, height - 6, "accuracy lost, pp", "middle"))
    for layer in layers:
        parts.append(text(left - 8, py(layer) + 4, layer[-20:], "end"))
    for row in rows:
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="point measured"/>').format(
                px(float(row["drop"])), py(str(row["layer"])), 2 + 5 * float(row["cut"])
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        span = max(abs(high), 1e-9) * 0.1
    raw = span / count
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """Six digits at most."""
    return f"{value:.6g}"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """An SVG line of a class."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, kind
    )


def text(x: float, y: float, words: str, anchor: str) -> Markup:
    """An SVG text, escaped."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, escape(words)
    )
