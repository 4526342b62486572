"""A safe subset of YAML that remembers lines.

Read by composing PyYAML's node tree and building the values ourselves, which leaves no constructor to
attack and none of the YAML 1.1 surprises: only ``true`` and ``false`` are booleans, ``1e-3`` is a number,
``12:30`` is text, dates stay text, a key stands once, tags are refused, aliases are capped.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from hwopt.core.canonical import JSON
from hwopt.errors import ConfigError

MAX_BYTES: Final = 1 << 20
MAX_NODES: Final = 20_000
MAX_DEPTH: Final = 50

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(slots=True)
class Document:
    """A parsed file: its value, and where each value stands."""

    path: Path
    value: JSON
    lines: dict[KeyPath, int] = field(default_factory=dict)
    key_lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: dict[KeyPath, str] = field(default_factory=dict)  # keys changed after reading: by what

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """``file:line`` of a key path, or of its nearest parent that stands in the file."""
        for given, by in self.overridden.items():
            if path[: len(given)] == given:
                return f"{by} " + ".".join(map(str, given))
        table = self.key_lines if key else self.lines
        while path and path not in table and path not in self.lines:
            path = path[:-1]
        line = table.get(path) or self.lines.get(path) or 1
        return f"{self.path}:{line}"


def read_text(path: Path) -> str:
    """The text of a profile; a clear error where it cannot be had."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", where=str(path), fix="name the YAML file in it")
        if size > MAX_BYTES:
            raise ConfigError(f"the file has {size:,} bytes; profiles end at {MAX_BYTES:,}", where=str(path))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "no such file", where=str(path), fix="check the path; relative paths start at the current folder"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 text (byte {error.start})", where=str(path), fix="save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None


def parse(text: str, path: Path) -> Document:
    """Text to a document; ConfigError with ``file:line`` for anything outside the subset."""
    document = Document(path=path, value=None)
    try:
        # compose() builds nodes only; no tag is ever turned into an object.
        _refuse_tags(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"not valid YAML: {reason}", where=f"{path}:{line}", fix="check indentation, colons and quotes"
        ) from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=f"{path}:1") from None
    except ValueError as error:  # characters that YAML forbids
        raise ConfigError(f"not valid YAML: {error}", where=f"{path}:1") from None
    if root is not None:
        document.value = _Builder(document).build(root, ())
    return document


def parse_scalar(text: str) -> JSON:
    """One value as it would be read from a profile; used by ``--set key=value``."""
    return parse(text, Path("--set")).value


def _refuse_tags(text: str, path: Path) -> None:
    """Any explicit tag, wherever it stands, and what is too deep or too long, before anything is built of it.

    Event by event: the time that PyYAML takes for a nested text grows with the square of its depth.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:
            line = event.start_mark.line + 1 if event.start_mark else 1
            deep = depth > MAX_DEPTH
            problem = f"nested deeper than {MAX_DEPTH} levels" if deep else f"more than {MAX_NODES:,} values"
            raise ConfigError(
                problem, where=f"{path}:{line}", fix="a profile needs no such thing: write it anew"
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigError(
                f"the tag {tag} is not allowed",
                where=f"{path}:{line}",
                fix="remove the tag",
            )


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, path: KeyPath) -> JSON:
        self.nodes += 1
        where = f"{self.document.path}:{node.start_mark.line + 1}"
        if self.nodes > MAX_NODES:  # an alias bomb counts here, because aliases are expanded
            raise ConfigError(f"more than {MAX_NODES:,} values, counted with aliases", where=where)
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=where)
        self.document.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, where)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> JSON:
        result: dict[str, JSON] = {}
        for key_node, value_node in node.value:
            where = f"{self.document.path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be a plain word", where=where)
            key: Any = key_node.value
            if key == "<<":
                raise ConfigError("merge keys are not supported", where=where, fix="write the keys out")
            if key in result:
                raise ConfigError(
                    f"the key {key!r} stands twice",
                    where=where,
                    fix="keep one of the two; neither is guessed",
                )
            self.document.key_lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*path, key))
        return result

    def _scalar(self, node: Any, where: str) -> JSON:
        text: str = node.value
        if node.style in ("'", '"', "|", ">"):
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.match(text):
            if len(text) > 30:
                raise ConfigError(f"the number has {len(text)} digits", where=where)
            return int(text.replace("_", ""))
        if _FLOAT.match(text) and math.isfinite(float(text)):
            return float(text)
        if _FLOAT.match(text) or _SPECIAL_FLOAT.match(text):
            raise ConfigError(f"{text} is not a finite number", where=where, fix="write a finite number")
        return text
