"""One record, its renderings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hwopt.core.canonical import pretty_json
from hwopt.report.html import page
from hwopt.report.rows import Record
from hwopt.report.table_csv import csv_table
from hwopt.report.text import markdown

FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "html": page,
    "md": markdown,
    "json": pretty_json,
    "csv": csv_table,
}


def render(record: Record, form: str) -> str:
    """``record`` as html, md, json or csv."""
    return FORMATS[form](record)
