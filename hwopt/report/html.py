"""One self-contained HTML page; the same record renders to the same bytes."""

from __future__ import annotations

from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from hwopt.report.charts import layers, operator_times, roofline
from hwopt.report.devices import across, balance
from hwopt.report.learning import learning
from hwopt.report.plot import points, scatter, sensitivity
from hwopt.report.readiness import assess
from hwopt.report.rows import HEADINGS, Record, choices, percent, sentence, table, warnings
from hwopt.report.text import absent, unchecked

_MEANING: Final = {
    "measured": "it ran on this machine",
    "compiled": "an engine was built, not run",
    "estimated": "an analytic model of the device",
    "predicted": "a statistical model fitted on other devices",
}


def page(record: Record) -> str:
    """The report. Everything from the record is escaped; the page requests nothing from the network."""
    environment = Environment(
        loader=PackageLoader("hwopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    targets = [_target(record, target, choice) for target, choice in choices(record)]
    readiness: Any = record.get("readiness") or assess(record)
    return environment.get_template("report.html.jinja").render(
        record=record,
        readiness=readiness,
        by_number={s["number"]: s for s in readiness["sections"]},
        headings=HEADINGS,
        table=table(record),
        sentence=sentence(record),
        warnings=warnings(record),
        absent=absent(record),
        unchecked=unchecked(record, readiness),
        targets=targets,
        meaning=_MEANING,
        percent=percent,
        sensitivity=sensitivity,
        across=across(record),
        balance=balance,
        training=learning(record),
        tiers=sorted({r["tier"] for r in record["results"] if r["tier"]}),
    )


def _target(record: Record, target: str, choice: str | None) -> dict[str, Any]:
    """A device's plots, and of the version to ship what runs where and for how long."""
    rows = [r for r in record["results"] if r["target"] == target]
    found: dict[str, Any] = {
        "name": target,
        "choice": choice,
        "rows": rows,
        "plot": scatter(points(record, target)),
        "sizes": scatter(points(record, target, "size"), "file, kB"),
        "roofline": None,
        "times": None,
        "precision": None,
    }
    chosen = next((r for r in rows if r["candidate"] == choice), None)
    if chosen is None or chosen["status"] != "ok":
        return found
    details = chosen["details"]
    inspection, benchmark = details.get("inspection") or {}, details.get("benchmark") or {}
    base = next((r for r in rows if r["status"] == "ok" and not r["details"].get("asked_integer")), None)
    floats = ((base or {}).get("details") or {}).get("benchmark", {}).get("operator_microseconds")
    p50 = chosen["latency_ms"]["p50"] if chosen["latency_ms"] and chosen["tier"] == "measured" else None
    times = benchmark.get("operator_microseconds")
    return found | {
        "chosen": chosen,
        "roofline": roofline(inspection.get("roofline"), p50, benchmark.get("batch", 1)),
        "times": operator_times(times, floats if base is not chosen else None, chosen["candidate"])
        if times
        else None,
        "precision": layers(
            [
                (one["name"], 1.0, f"{one['op']}, {'integer' if one['integer'] else 'float'}")
                for one in (details.get("evaluation") or {}).get("layers", [])[:40]
            ],
            "Precision of each weighted operator",
        ),
    }
