"""The results of a record as CSV: one row a candidate and target, numbers unrounded."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

from hwopt.report.rows import Record

COLUMNS: Final = (
    "candidate", "target", "status", "tier", "accuracy", "accuracy_drop", "agreement", "p50_ms",
    "p50_low_ms", "p50_high_ms", "speedup", "speedup_low", "speedup_high", "file_bytes", "parameters", "macs",
    "integer_share", "scheme", "verdict",
)  # fmt: skip


def csv_table(record: Record) -> str:
    """Columns as in docs/record.md; what was not obtained is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in record["results"]:
        latency, speedup = r["latency_ms"] or {}, r["speedup"] or {}
        flat = {
            **r,
            "p50_ms": latency.get("p50"),
            "p50_low_ms": latency.get("low"),
            "p50_high_ms": latency.get("high"),
            "speedup": speedup.get("estimate"),
            "speedup_low": speedup.get("low"),
            "speedup_high": speedup.get("high"),
        }
        writer.writerow([_cell(flat[name]) for name in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets a quote in front."""
    return "'" + value if isinstance(value, str) and value[:1] in "=+-@" else value
