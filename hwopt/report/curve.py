"""Curves as SVG: learning curves, schedules, slices of a loss surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

from markupsafe import Markup, escape

from hwopt.report.plot import line, short, text, ticks

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 120, 16, 40
_DASHES: Final = ("", "6 3", "2 3", "8 3 2 3")

Series = Mapping[str, Sequence[tuple[float, float]]]


def curves(series: Series, x_name: str, y_name: str) -> Markup:
    """One line a series, told apart by dashes as well as by its name; an empty string where there is nothing."""
    data = {
        name: [p for p in points if p[1] is not None and isfinite(p[1])] for name, points in series.items()
    }
    data = {name: points for name, points in data.items() if len(points) > 1}
    if not data:
        return Markup("")
    xs = [x for points in data.values() for x, _ in points]
    ys = [y for points in data.values() for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x0, x1 = min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs))
    y0, y1 = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0 or 1) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0 or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{} by {}">').format(
            WIDTH, HEIGHT, y_name, x_name
        )
    ]
    for tick in x_ticks:
        parts += [
            line(px(tick), TOP, px(tick), HEIGHT - BOTTOM, "grid"),
            text(px(tick), HEIGHT - BOTTOM + 16, short(tick), "middle"),
        ]
    for tick in y_ticks:
        parts += [
            line(LEFT, py(tick), WIDTH - RIGHT, py(tick), "grid"),
            text(LEFT - 8, py(tick) + 4, short(tick), "end"),
        ]
    for index, (name, points) in enumerate(data.items()):
        points = points[:: max(1, len(points) // 2000)]  # more than there are pixels
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        dash = _DASHES[index % len(_DASHES)]
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="{}"/>'
            ).format(path, dash)
        )
        label = py(points[-1][1]) + 4 + 14 * index - 7 * (len(data) - 1)
        label = min(max(label, TOP + 8), HEIGHT - BOTTOM)
        parts.append(text(px(points[-1][0]) + 6, label, name, "start"))
    parts += [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name, "middle"),
        text(LEFT - 50, TOP - 4, y_name, "start"),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def standalone(svg: Markup, title: str) -> str:
    """A file of its own; dark where the viewer is."""
    opened = '<svg xmlns="http://www.w3.org/2000/svg"'
    style = (
        "<style>svg{font:11px sans-serif;color:#1a4a8a;background:#fff}text{fill:#333}.grid{stroke:#ddd}"
        "@media(prefers-color-scheme:dark){svg{color:#8ab8ff;background:#111}text{fill:#ccc}.grid{stroke:#333}}</style>"
    )
    body = str(svg).replace("<svg", opened, 1)
    head, _, rest = body.partition(">")
    return f"{head}><title>{escape(title)}</title>{style}{rest}\n"
