"""A search as one self-contained HTML page: history, front, importance, every version with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hwopt.report.charts import layers
from hwopt.report.curve import curves
from hwopt.report.plot import Point, scatter

_SHARES: Final = {"accuracy", "f1", "agreement", "validation_accuracy"}

Found = Mapping[str, Any]


def search_page(found: Found) -> str:
    """The page of a search's document; everything in it is escaped, and it requests nothing from the network."""
    environment = Environment(
        loader=PackageLoader("hwopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = [o["metric"] for o in found["objectives"]]
    shares = sorted(found.get("importance", {}).items(), key=lambda item: (-item[1], item[0]))
    return environment.get_template("search.html.jinja").render(
        found=found,
        summary=summary(found),
        history=_history(found),
        scatter=_scatter(found),
        headings=["trial", *metrics, "version"],
        front=[
            {
                "number": t["number"],
                "cells": [said(t["values"].get(m)) for m in metrics],
                "version": version(t["sample"]),
                "chosen": t["number"] == found["winner"],
            }
            for t in found["trials"]
            if t["number"] in found["front"]
        ],
        importance=layers([(n, s, f"{s:.0%}") for n, s in shares], "Importance of each axis")
        if shares
        else None,
        trials=[
            {
                "number": t["number"],
                "status": t["status"],
                "said": ", ".join(f"{name} {said(value)}" for name, value in sorted(t["values"].items())),
                "reason": "; ".join([*([t["reason"]] if t["reason"] else []), *t["notes"]]),
                "version": version(t["sample"]),
            }
            for t in found["trials"]
        ],
    )


def summary(found: Found) -> str:
    """How many versions, what became of them, and which one won."""
    counts = ", ".join(f"{n} {status}" for status, n in found["counts"].items() if n)
    end = "it goes on" if found["ended"] is None else f"ended because {found['ended']}"
    text = f"{len(found['trials'])} versions: {counts}; {end}."
    if found["winner"] is None:
        return f"{text} No trained version keeps the limits."
    text += f" The winner is trial {found['winner']}."
    if found["limits"] and not found["surely_keeps_limits"]:
        text += " It keeps the limits by its estimates; its intervals leave it open."
    if found["surely_better_than_defaults"] is False:
        text += " Its lead over the profile as written is within noise."
    return text


def version(sample: Mapping[str, Any]) -> str:
    """A sample in a line."""
    return ", ".join(f"{name} {value}" for name, value in sample.items())


def said(value: Mapping[str, Any] | None) -> str:
    """A number with its interval and tier."""
    if value is None:
        return "not known"
    low, high = value["low"], value["high"]
    ends = "" if low == high and low is not None else f" [{_short(low)}, {_short(high)}]"
    return f"{_short(value['estimate'])}{ends} ({value['tier']})"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _trained(found: Found, *metrics: str) -> list[Mapping[str, Any]]:
    return [t for t in found["trials"] if t["status"] == "ok" and all(m in t["values"] for m in metrics)]


def _history(found: Found) -> Markup:
    first = found["objectives"][0]
    sign = 1 if first["goal"] == "max" else -1
    every: list[tuple[float, float]] = []
    best: list[tuple[float, float]] = []
    kept = [t for t in _trained(found, first["metric"]) if t["keeps_limits"]]
    for place, trial in enumerate(kept, 1):
        value = float(trial["values"][first["metric"]]["estimate"])
        every.append((float(place), value))
        best.append((float(place), value if not best else sign * max(sign * value, sign * best[-1][1])))
    return curves({"best so far": best, "each": every}, "trained version", first["metric"])


def _scatter(found: Found) -> Markup:
    """An objective of which more is better against another of which less is; empty where there is no such pair."""
    up = next((o["metric"] for o in found["objectives"] if o["metric"] in _SHARES), None)
    down = next((o["metric"] for o in found["objectives"] if o["goal"] == "min" and o["metric"] != up), None)
    if up is None or down is None:
        return Markup("")
    points: Sequence[Point] = [
        Point(
            name=str(t["number"]) if t["number"] in found["front"] else "",
            x=t["values"][down]["estimate"],
            x_low=_or(t["values"][down]["low"], t["values"][down]["estimate"]),
            x_high=_or(t["values"][down]["high"], t["values"][down]["estimate"]),
            y=100 * t["values"][up]["estimate"],
            y_low=100 * _or(t["values"][up]["low"], t["values"][up]["estimate"]),
            y_high=100 * _or(t["values"][up]["high"], t["values"][up]["estimate"]),
            tier=t["values"][down]["tier"],
            chosen=t["number"] == found["winner"],
        )
        for t in _trained(found, up, down)
    ]
    return scatter(points, down, up.replace("_", " "))


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
