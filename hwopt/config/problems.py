"""pydantic's errors in our words: what, ``file:line``, fix."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from hwopt.config.yaml_text import Document, KeyPath
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.settings import Settings
from hwopt.errors import Problem
from hwopt.plugins import did_you_mean

S = TypeVar("S", bound=Settings)


def validate(
    model: type[S], value: JSON, document: Document, at: KeyPath, problems: list[Problem]
) -> S | None:
    """``value`` as a ``model``, or None with every reason appended to ``problems``."""
    if not isinstance(value, dict):
        problems.append(
            Problem(
                problem=f"expected a mapping with keys such as {', '.join(list(model.model_fields)[:4])}, "
                f"not {_shown(value)}",
                where=document.where(at),
                fix="write `key: value` lines, or {key: value}",
            )
        )
        return None
    try:
        # Through JSON: strictness then means JSON's types, so lists serve as tuples and text as enums.
        return model.model_validate_json(canonical_json(value))
    except ValidationError as error:
        problems.extend(_problems(model, error, document, at))
        return None


def _problems(
    model: type[Settings], error: ValidationError, document: Document, at: KeyPath
) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        loc = _path_in_file(item["loc"], document, at)
        kind, given = item["type"], item.get("input")
        context: dict[str, Any] = item.get("ctx", {})
        name = ".".join(str(part) for part in loc) or "the profile"
        fix: str | None = None
        is_key = False
        if kind == "extra_forbidden":
            known = _fields_at(model, tuple(item["loc"][:-1]))
            text, fix, is_key = (
                f"unknown key {item['loc'][-1]!r}",
                did_you_mean(str(item["loc"][-1]), known),
                True,
            )
        elif kind == "missing":
            text, fix = f"the key {name!r} is missing", f"add `{item['loc'][-1]}: …`"
        elif "fix" in context:
            text, fix = item["msg"], str(context["fix"])
        elif kind == "value_error":
            text = f"{name}: {context['error']}"
        else:
            text = f"{name} is {_shown(given)}: {_plain(item['msg'])}"
            fix = _type_hint(kind, given, str(context.get("expected", "")))
        yield Problem(problem=text, where=document.where((*at, *loc), key=is_key), fix=fix)


def _path_in_file(loc: tuple[int | str, ...], document: Document, at: KeyPath) -> tuple[int | str, ...]:
    """pydantic adds names of union members to a location; keep what stands in the file."""
    kept: list[int | str] = []
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        known = (*at, *kept, part) in document.lines or (*at, *kept, part) in document.key_lines
        if known or last:
            kept.append(part)
    if kept and (*at, *kept) not in document.lines and "-" in str(kept[-1]):
        kept.pop()  # "function-after[...]" and the like
    return tuple(kept)


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys that are legal at ``loc`` below ``model``."""
    current: type[BaseModel] = model
    for part in loc:
        field = current.model_fields.get(str(part))
        if field is None:
            continue  # an index, or the name of a union member
        inner = next(_models_in(field.annotation), None)
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        if argument is not NoneType:
            yield from _models_in(argument)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(message: str) -> str:
    return message.replace("Input should", "it should") if message else message


def _type_hint(kind: str, given: Any, expected: str) -> str | None:
    if kind in {"int_type", "float_type", "bool_type"} and isinstance(given, str):
        return "remove the quotes, or write a number (true/false for a switch)"
    if kind == "literal_error":
        return did_you_mean(
            str(given), [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
        )
    if kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "int_from_float"}:
        return "give a number in that range"
    if kind == "string_type":
        return "put the value in quotes"
    return None
