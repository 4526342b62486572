"""The page of a search: while it goes on and after it, whatever its words are, and without any trained version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hwopt.report.search import search_page
from hwopt.search.job import Job
from tests.search.subjects import LR, MadeUp, lead, subject

BOTH: list[dict[str, Any]] = [{"metric": "accuracy"}, {"metric": "macs"}]


def measured(job: Job) -> dict[str, float]:
    width = float(str(job.sample["model.hidden.0"]))
    if width == 24:
        raise ValueError("<script>alert(1)</script>")
    return {"accuracy": 0.5 + width / 100} if job.trained else {"macs": 64 * width, "file_bytes": 9.0}


def test_a_page_of_a_search(tmp_path: Path) -> None:
    space = {"model.hidden.0": {"one_of": [8, 16, 24, 64]}, **LR}
    limits = [{"metric": "macs", "max": 2000}]
    one = lead(subject(tmp_path, space, limits, trials=8, objectives=BOTH), MadeUp(measured))
    why = one.run()
    live, ended = search_page(one.summary(None)), search_page(one.summary(why))
    assert '<meta http-equiv="refresh" content="15">' in live
    assert "refresh" not in ended
    assert "it goes on" in live
    assert "ended because 8 trials are done" in ended
    assert "<script>" not in ended
    assert "&lt;script&gt;alert(1)" in ended
    assert ended.count("<svg") == 2  # history and front; nothing said of importance
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(\d+)</th>", ended)
    assert {int(n) for n in rows} == {t.number for t in one.trials}
    winner = one.winner()
    assert winner is not None
    assert f"The winner is trial {winner.number}." in ended


def test_a_page_before_anything_is_trained(tmp_path: Path) -> None:
    one = lead(subject(tmp_path, LR), MadeUp(lambda job: {"accuracy": 0.5}))
    page = search_page(one.summary(None))
    assert "No trained version keeps the limits." in page


def test_the_plot_names_what_it_shows(tmp_path: Path) -> None:
    both = [{"metric": "f1"}, {"metric": "macs"}]
    one = lead(
        subject(tmp_path, LR, trials=2, objectives=both),
        MadeUp(lambda job: {"f1": 0.5, "macs": 9.0, "file_bytes": 9.0}),
    )
    page = search_page(one.summary(one.run()))
    assert "F1 against macs" in page
    assert "f1, %" in page
    assert "ccuracy" not in page.partition("<table")[0]
