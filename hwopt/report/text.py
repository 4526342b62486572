"""The table for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from hwopt.report.readiness import assess
from hwopt.report.rows import HEADINGS, Record, choices, sentence, table, warnings

NEVER: Final = (
    "Drift of the input data in the field, fairness between groups, attacks on inputs: outside of hwopt"
)


def terminal(record: Record) -> str:
    """The table that ends a run, with what must not be overlooked below it."""
    lines = columns([list(HEADINGS), *table(record)])
    for warning in warnings(record):
        lines.append(f"note: {warning}")
    for target, reason, fix in absent(record):
        lines.append(f"note: {target} was not run: {reason}" + (f" → {fix}" if fix else ""))
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as aligned lines; the first is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return lines


def absent(record: Record) -> list[tuple[str, str, str | None]]:
    """Targets none of whose rows could run: name, reason, fix."""
    found = []
    for target, _ in choices(record):
        rows = [r for r in record["results"] if r["target"] == target]
        if all(r["status"] == "unavailable" for r in rows):
            found.append((target, rows[0]["reason"], rows[0]["details"].get("fix")))
    return found


def markdown(record: Record) -> str:
    """The report for a pull request or a step summary."""
    readiness: Any = record.get("readiness") or assess(record)
    lines = [
        f"# {plain(record['name'])}: {readiness['verdict']}",
        "",
        f"{plain(readiness['why'])}.",
        "",
        f"Requirements: {plain(sentence(record))}.",
        "",
        *(f"- {plain(text)}" for text in readiness["blocking"]),
        "",
        f"Run `{record['run']}`, {record['started']}, hwopt {record['environment']['libraries']['hwopt']}, "
        f"{plain(record['environment']['host']['cpu'])}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
    ]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in table(record)]
    lines += ["", "`←` marks the version to ship on its target.", ""]
    if warnings(record):
        lines += ["## Notes", "", *(f"- {plain(w)}" for w in warnings(record)), ""]
    lines += ["## Requirements", ""]
    for r in record["results"]:
        for j in r["details"].get("requirements", []):
            lines.append(
                f"- {j['verdict']}: {plain(r['candidate'])} on {r['target']}, "
                f"{j['requirement']}: {plain(j['reason'])}"
            )
    if not record["requirements"]:
        lines.append("None were stated.")
    for section in readiness["sections"]:
        lines += ["", f"## {section['number']} {section['title']}: {section['status']}", ""]
        if section["number"] == len(readiness["sections"]):
            lines += [f"- {plain(text)}" for text in unchecked(record, readiness)] or [
                "Nothing was left out."
            ]
        elif section["checks"]:
            lines += ["| target | check | state | what was seen | asked |", "|---|---|---|---|---|"]
            lines += [
                f"| {c['target'] or 'the run'} | {plain(c['check'])} | {c['status']} | {plain(c['said'])} | "
                f"{plain(c['asked'])} |"
                for c in section["checks"]
            ]
        else:
            lines.append("Nothing was checked: no version is chosen.")
    return "\n".join(lines) + "\n"


def unchecked(record: Record, readiness: Any) -> list[str]:
    """What was not looked at, of the profile's wishes and of the readiness report's own."""
    found = [str(text) for text in record["not_checked"]]
    for section in readiness["sections"][:-1]:
        for c in section["checks"]:
            if c["status"] == "SKIPPED":
                place = f" on {c['target']}" if c["target"] else ""
                found.append(f"{section['title']}, {c['check']}{place}: {c['said']}")
    return [*found, NEVER]


def plain(text: object) -> str:
    """Names come from users and models: no Markdown or HTML of theirs may take effect."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for mark in "\\|`[]":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped
