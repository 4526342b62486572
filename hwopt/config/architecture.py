"""``space: width_depth``: the axes of a model's own shape, from its options and what they may be."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Final

from hwopt.core.canonical import JSON
from hwopt.core.choices import Choice
from hwopt.errors import Problem
from hwopt.plugins import resolve

WORD: Final = "width_depth"
_SHARES: Final = (0.25, 0.5, 0.75, 1.0)
_WIDE: Final = (
    "width",
    "hidden",
    "embedding",
)  # names of options, as models of hwopt and most others have them
_DEEP: Final = ("depth", "layers")
_SIZED: Final = ("kernel",)


def spread(search: JSON, model: Choice | None, where: str, problems: list[Problem]) -> JSON:
    """The section ``search`` with its axes written out, where it says ``width_depth``."""
    given: JSON = {"space": WORD} if search == WORD else search
    if not isinstance(given, dict) or given.get("space") != WORD:
        return given
    if model is None:  # which was said
        return None
    axes = axes_of(model)
    if not axes:
        named = ", ".join((*_WIDE, *_DEEP, *_SIZED))
        problems.append(
            Problem(
                problem=f"width_depth finds nothing in this model: it has no option called {named}",
                where=where,
                fix="name the keys: search.space: {model.channels: {one_of: [8, 16]}}",
            )
        )
        return None
    return {**given, "space": axes}


def axes_of(model: Choice) -> dict[str, JSON]:
    """Widths of a quarter, a half, three quarters and the whole; depths up to the profile's; every kernel size."""
    fields: Mapping[str, Any] = (
        resolve("model", model.name).settings.model_fields if model.name is not None else {}
    )
    found: dict[str, JSON] = {}
    for name, value in model.options.items():
        allowed = typing.get_args(fields[name].annotation) if name in fields else ()
        choices = _choices(name, value, [a for a in allowed if isinstance(a, int)])
        if len(choices) > 1:
            found[f"model.{name}"] = {"one_of": choices}
    return found


def _choices(name: str, value: JSON, allowed: list[int]) -> list[JSON]:
    if name in _WIDE and isinstance(value, list) and all(isinstance(v, int) for v in value):
        stacks = [_scaled(value[:depth], share) for depth in range(1, len(value) + 1) for share in _SHARES]
        return [stack for i, stack in enumerate(stacks) if stack not in stacks[:i]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if name in _WIDE:
        return list(dict.fromkeys(_scaled([value], share)[0] for share in _SHARES))
    if name in _DEEP:
        return [v for v in (allowed or range(1, int(value) + 1)) if v <= value]
    return list(allowed) if name in _SIZED else []


def _scaled(widths: list[Any], share: float) -> list[JSON]:
    return [max(1, round(w * share)) if isinstance(w, int) else w * share for w in widths]
