from __future__ import annotations

import copy
import csv
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from hwopt.report.plot import ticks
from hwopt.report.render import render
from hwopt.report.rows import latency, points, speedup, warnings
from hwopt.report.text import terminal
from tests.conftest import DigitsRun

VOID = {"meta", "line", "circle", "rect", "polyline"}


class Balanced(HTMLParser):
    """Counts that every element is closed, and notes what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {k}={v}" for k, v in attrs if k in {"src", "href"}]
        if tag in {"script", "link", "iframe", "img"}:
            self.fetched.append(tag)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {k}={v}" for k, v in attrs if k in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack
        assert self.stack.pop() == tag


def test_page_is_whole_and_fetches_nothing(digits_run: DigitsRun) -> None:
    page = render(digits_run.record, "html")
    parser = Balanced()
    parser.feed(page)
    assert parser.stack == []
    assert all(one.startswith("a href=#s") or one == "a href=#main" for one in parser.fetched)
    assert "http" not in page.replace("http-equiv", "")
    # Two targets in two plots each, both together, three designs, three of the training; of the version to ship on the
    # host its operator times, roofline and precision.
    assert page.count("<svg") == 14
    for words in ("PASS", "slim-qat", "estimated", "What was not checked", "QLinearConv"):
        assert words in page


def test_same_record_same_bytes(digits_run: DigitsRun) -> None:
    for form in ("html", "md", "json", "csv"):
        assert render(digits_run.record, form) == render(copy.deepcopy(digits_run.record), form)


def test_csv_has_every_row_and_runs_no_formula(digits_run: DigitsRun) -> None:
    record: Any = copy.deepcopy(digits_run.record)
    record["results"][0]["candidate"] = "=1+1"
    rows = list(csv.DictReader(render(record, "csv").splitlines()))
    assert len(rows) == len(record["results"])
    assert rows[0]["candidate"] == "'=1+1"
    assert float(rows[1]["speedup"]) == record["results"][1]["speedup"]["estimate"]


def test_hostile_names_take_no_effect(digits_run: DigitsRun) -> None:
    record: Any = copy.deepcopy(digits_run.record)
    evil = '<script>alert("x")</script>|`[a](b)'
    record["name"] = evil
    record["results"][0]["candidate"] = evil
    assert "<script" not in render(record, "html")
    text = render(record, "md")
    assert "<script" not in text
    assert "\\`\\[a\\]" in text


def test_terminal_table_is_aligned(digits_run: DigitsRun) -> None:
    lines = terminal(digits_run.record).splitlines()
    column = lines[0].index("accuracy")
    assert all(re.match(r"\d+\.\d+%|–|─", line[column:]) for line in lines[1:13])
    assert any("nvidia-l4 was not run" in line for line in lines) or "nvidia-l4" in lines[-4]


def test_warnings_name_versions_slower_than_float(digits_run: DigitsRun) -> None:
    record: Any = copy.deepcopy(digits_run.record)
    row = next(r for r in record["results"] if r["candidate"] == "int8-ptq" and r["target"] == "host-cpu")
    row["speedup"] = {"estimate": 0.8, "low": 0.78, "high": 0.82}
    row["details"]["benchmark"]["speedup_in_its_runtime"] = row["speedup"]
    row["details"]["benchmark"]["no_faster_because"] = [
        {"cause": "fallback", "text": "3 operators run in float", "operators": [], "fix": "quantize them"}
    ]
    row["details"]["benchmark"]["pairs"]["degraded"] = True
    found = warnings(record)
    assert any("int8-ptq on host-cpu is slower than float: 0.80× [0.78, 0.82]" in text for text in found)
    assert any("undisturbed" in text for text in found)


def test_cells() -> None:
    assert points(0.0) == "0.00 pp"
    assert points(-0.00139) == "-0.14 pp"
    assert points(0.0036) == "+0.36 pp"
    assert latency({"p50": 0.0224}) == "22.4 µs"
    assert latency({"p50": 1.5}) == "1.5 ms"
    assert speedup({"estimate": 2.0, "low": None, "high": None}) == "2.00× [too few pairs]"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (98.1, 99.2, [98.0, 98.5, 99.0, 99.5])],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected
    assert ticks(5.0, 5.0)[0] <= 5.0 <= ticks(5.0, 5.0)[-1]


def test_pruning_says_what_it_reached_and_what_zeros_brought(digits_run: DigitsRun) -> None:
    record = copy.deepcopy(digits_run.record)
    row = next(r for r in record["results"] if r["candidate"] == "slim" and r["target"] == "host-cpu")
    reached = {"estimate": 0.62, "low": 0.61, "high": 0.63}
    goal = {
        "unit": "latency",
        "tier": "measured",
        "goal": 0.5,
        "predicted": 0.6,
        "reached": reached,
        "met": False,
    }
    row["details"]["pruning_goal"] = goal
    row["details"]["prune_sensitivity"] = [
        {"layer": "<b>3", "cut": 0.5, "accuracy": 0.9, "drop": 0.05},
        {"layer": "0", "cut": 0.25, "accuracy": 0.95, "drop": 0.0},
    ]
    row["details"]["auto"] = {
        "goal": "accuracy_drop ≤ 0.01", "met": False, "validation_drop": 0.02, "latency": 0.3,
        "stopped": "of <i>", "width": 0.5, "tried": [
            {"share": 0.5, "float": 0.5, "quantized": None, "precision": None, "drop": 0.02,
             "tried": [{"quantized": False, "latency": 0.5, "drop": 0.02}]},
            {"share": 0.3, "float": 0.3, "quantized": 0.2, "precision": {"integer_layers": 2, "layers": 5},
             "drop": None, "tried": []},
        ],
    }  # fmt: skip
    sparse = next(r for r in record["results"] if r["candidate"] == "fp32" and r["target"] == "host-cpu")
    sparse["details"]["zero_weights"] = {"share": 0.9, "pattern": None, "layers": {}}
    sparse["details"]["deflated_bytes"] = 90_000
    said = "\n".join(warnings(record))
    assert (
        "slim on host-cpu was to be pruned to 0.5 of the float latency, and reached 0.620 (measured)" in said
    )
    assert "recipe auto did not find accuracy_drop ≤ 0.01" in said
    assert "90% of the weights are zero; compressed the file takes 90 kB instead of" in said
    assert "no faster on this runtime: 1.00×" in said
    page = render(record, "html")
    parser = Balanced()
    parser.feed(page)
    assert parser.stack == []
    assert "<b>3" not in page
    assert "of <i>" not in page
    for words in (
        "predicted 0.600, reached 0.620",
        "What recipe auto tried",
        "2 of 5",
        "one group of channels",
    ):
        assert words in page
    assert page.count("<svg") == 15  # those, and one of sensitivity


def test_the_cost_of_training_is_stated(digits_run: DigitsRun) -> None:
    slim, ptq = (
        digits_run.row(name, "host-cpu")["details"]["training_cost"] for name in ("slim", "int8-ptq")
    )
    assert ptq is None
    assert slim["cpu_seconds"] > 0
    assert 0.05 < slim["of_float"] < 3
    assert "of the float model's" in render(digits_run.record, "html")
