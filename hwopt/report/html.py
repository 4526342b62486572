"""One self-contained HTML page; the same record renders to the same bytes."""

from __future__ import annotations

from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from hwopt.report.devices import across, balance
from hwopt.report.learning import learning
from hwopt.report.plot import points, scatter, sensitivity
from hwopt.report.rows import HEADINGS, Record, choices, percent, sentence, table, warnings
from hwopt.report.text import absent

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
    targets = [
        {
            "name": target,
            "choice": choice,
            "plot": scatter(points(record, target)),
            "rows": [r for r in record["results"] if r["target"] == target],
        }
        for target, choice in choices(record)
    ]
    return environment.get_template("report.html.jinja").render(
        record=record,
        headings=HEADINGS,
        table=table(record),
        sentence=sentence(record),
        warnings=warnings(record),
        absent=absent(record),
        targets=targets,
        meaning=_MEANING,
        percent=percent,
        sensitivity=sensitivity,
        across=across(record),
        balance=balance,
        training=learning(record),
        tiers=sorted({r["tier"] for r in record["results"] if r["tier"]}),
    )
