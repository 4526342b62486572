"""A gate's verdict for people and for CI systems: lines, Markdown, JUnit XML. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

from hwopt.report.text import plain

Gate = Mapping[str, Any]
SUMMARY_BYTES: Final = 800_000  # GitHub takes 1 MiB a step
# What XML 1.0 may hold; ElementTree writes the rest and parsers then refuse the file.
_ILLEGAL: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def place_of(rule: Mapping[str, Any]) -> str:
    """Version and target of a rule's verdict."""
    return f"{rule['candidate'] or 'no version'}" + (f" on {rule['target']}" if rule["target"] else "")


def lines(gate: Gate) -> list[str]:
    """For a terminal."""
    found = []
    for rule in gate["rules"]:
        state = "waived" if rule["waiver"] else rule["verdict"]
        warn = " (warns only)" if rule["severity"] == "warn" else ""
        found.append(f"{state:12s}  {rule['rule']}{warn}: {place_of(rule)}: {rule['reason']}")
        if rule["waiver"]:
            found.append(f"{'':12s}  {rule['waiver']}")
    return [*found, f"{gate['verdict']}: {gate['policy']['name']} on {gate['name']}, run {gate['run']}"]


def summary(gate: Gate) -> str:
    """Markdown for a step summary or a merge request, within the size that hosts take."""
    head = [
        f"## {gate['verdict']}: {plain(gate['policy']['name'])} on {plain(gate['name'])}",
        "",
        f"Run `{gate['run']}`"
        + (f", baseline `{gate['baseline']['run']}`" if gate["baseline"] else "")
        + ".",
        "",
        "| verdict | rule | version | why |",
        "|---|---|---|---|",
    ]
    rows, size = [], sum(len(line.encode()) + 1 for line in head)
    for number, rule in enumerate(gate["rules"]):
        state = f"waived ({rule['verdict']})" if rule["waiver"] else rule["verdict"]
        why = plain(rule["reason"]) + (f"; {plain(rule['waiver'])}" if rule["waiver"] else "")
        row = f"| {state} | {plain(rule['rule'])} | {plain(place_of(rule))} | {why} |"
        size += len(row.encode()) + 1
        if size > SUMMARY_BYTES - 200:
            rows.append(
                f"\n{len(gate['rules']) - number} more rules are left out here; the JSON has them all."
            )
            break
        rows.append(row)
    return "\n".join([*head, *rows]) + "\n"


def junit(gate: Gate) -> str:
    """JUnit XML: a case a rule and version. What blocks and is open is an error, what only warns is skipped."""
    counts = {"failures": 0, "errors": 0, "skipped": 0}
    suite = ElementTree.Element("testsuite")
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("run", "verdict", "day"):
        ElementTree.SubElement(properties, "property", name=name, value=_legal(gate[name]))
    seen: dict[str, int] = {}
    for rule in gate["rules"]:
        name = f"{rule['rule']} [{place_of(rule)}]"
        seen[name] = seen.get(name, 0) + 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        case = ElementTree.SubElement(
            suite, "testcase", classname=_legal(f"gate.{gate['name']}"), name=_legal(name), time="0"
        )
        text = _legal(rule["reason"] + (f" ({rule['waiver']})" if rule["waiver"] else ""))
        soft = rule["severity"] == "warn" or rule["waiver"] is not None
        if rule["verdict"] == "PASS":
            ElementTree.SubElement(case, "system-out").text = text
            continue
        kind, count = ("skipped", "skipped") if soft else ("failure", "failures")
        if not soft and rule["verdict"] == "INCONCLUSIVE":
            kind, count = "error", "errors"
        counts[count] += 1
        message = f"{rule['verdict']}: {text}"
        extra = {} if kind == "skipped" else {"type": rule["verdict"].lower()}
        ElementTree.SubElement(case, kind, message=message, **extra).text = message
    attributes = {
        "name": _legal(f"gate {gate['policy']['name']}"),
        "tests": str(len(gate["rules"])),
        "time": "0",
    }
    attributes |= {name: str(count) for name, count in counts.items()}
    suite.attrib.update(attributes)
    root = ElementTree.Element("testsuites", attributes)
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _legal(text: object) -> str:
    return _ILLEGAL.sub("\ufffd", str(text))
