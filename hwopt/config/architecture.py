"""``space: width_depth``: the axes of a model's own shape, from its options and what they may be."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Final

from hwopt.config.yaml_text import Document
from hwopt.core.canonical import JSON
from hwopt.core.choices import Choice
from hwopt.errors import Problem
from hwopt.plugins import did_you_mean, resolve

WIDTH_DEPTH: Final = "width_depth"
_SHARES: Final = (0.25, 0.5, 0.75, 1.0)
_MOST_DEPTHS: Final = 8
_WIDE: Final = (
    "width",
    "hidden",
    "embedding",
)  # names of options, as models of hwopt and most others have them
_DEEP: Final = ("depth", "layers")
_SIZED: Final = ("kernel",)


def spread(search: JSON, model: Choice | None, document: Document, problems: list[Problem]) -> JSON:
    """The section ``search`` with its axes written out, where its space has ``width_depth``.

    It may be the whole section, the whole space, or ``width_depth: true`` beside other axes.
    """
    given: JSON = {"space": search} if isinstance(search, str) else search
    if not isinstance(given, dict):
        return given
    space, where = given.get("space"), document.where(("search", "space"))
    if isinstance(space, str):
        if space != WIDTH_DEPTH:
            text = f"{space!r} is no space: axes by name, or {WIDTH_DEPTH}"
            problems.append(Problem(problem=text, where=where, fix=did_you_mean(space, [WIDTH_DEPTH])))
            return None
        space = {WIDTH_DEPTH: True}
    if not isinstance(space, dict) or not isinstance(space.get(WIDTH_DEPTH), bool):
        return given
    others = {name: axis for name, axis in space.items() if name != WIDTH_DEPTH}
    if space[WIDTH_DEPTH] is False:
        return {**given, "space": others}
    if model is None:  # which was said
        return None
    axes = axes_of(model)
    if not axes:
        named = ", ".join((*_WIDE, *_DEEP, *_SIZED))
        problems.append(
            Problem(
                problem=f"{WIDTH_DEPTH} finds nothing: this model has no option of several values called {named}",
                where=where,
                fix="name the keys that change the model, for example one of a candidate's chain",
            )
        )
        return None
    return {**given, "space": {**axes, **others}}


def axes_of(model: Choice) -> dict[str, JSON]:
    """Widths of a quarter, a half, three quarters and the whole; depths up to the profile's; every kernel size."""
    fields: Mapping[str, Any] = (
        resolve("model", model.name).settings.model_fields if model.name is not None else {}
    )
    heads = model.options.get("heads")
    step = 2 * heads if isinstance(heads, int) and not isinstance(heads, bool) else 1  # of attention's width
    found: dict[str, JSON] = {}
    for name, value in model.options.items():
        allowed = typing.get_args(fields[name].annotation) if name in fields else ()
        choices = _choices(name, value, [a for a in allowed if isinstance(a, int)], step)
        if len(choices) > 1:
            found[f"model.{name}"] = {"one_of": choices}
    return found


def _choices(name: str, value: JSON, allowed: list[int], step: int) -> list[JSON]:
    if name in _WIDE and isinstance(value, list) and value and all(_is_whole(v) for v in value):
        stacks = [_scaled(value[:depth], share, 1) for depth in _some(len(value)) for share in _SHARES]
        return [stack for i, stack in enumerate(stacks) if stack not in stacks[:i]]
    if name in _WIDE and (_is_whole(value) or isinstance(value, float)):
        return list(dict.fromkeys(_scaled([value], share, step)[0] for share in _SHARES))
    if name in _DEEP and _is_whole(value):
        return [v for v in allowed if v <= typing.cast(int, value)] or _some(typing.cast(int, value))
    return list(allowed) if name in _SIZED else []


def _some(deepest: int) -> list[Any]:
    """Depths up to one, evenly spaced where there are many."""
    count = min(max(deepest, 0), _MOST_DEPTHS)
    return sorted({max(1, round(deepest * (i + 1) / count)) for i in range(count)})


def _is_whole(value: JSON) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _scaled(widths: list[Any], share: float, step: int) -> list[Any]:
    return [max(step, round(w * share / step) * step) if isinstance(w, int) else w * share for w in widths]
