from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hwopt.core.canonical import JSON
from hwopt.plugins import load_reference, resolve
from hwopt.tracking import ledger as room
from hwopt.tracking.ledger import FileLedger, read, replay


class Memory:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, run: str, config: Mapping[str, JSON], /) -> None:
        self.told.append(("start", run, dict(config)))

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        self.told.append(("log", step, dict(values)))

    def note(self, step: int, text: str, /) -> None:
        self.told.append(("note", step, text))

    def artifact(self, path: Path, kind: str, /) -> None:
        self.told.append(("artifact", path.name, kind))

    def finish(self, status: str, /) -> None:
        self.told.append(("finish", status))


class Dying(Memory):
    """A tracker that fails at the second number."""

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        if step > 1:
            raise ConnectionError("the server is gone")
        super().log(step, values)


class Hanging(Memory):
    """A tracker that never comes back."""

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        time.sleep(3600)


def filled(path: Path, **sinks: Any) -> list[str]:
    warned: list[str] = []
    ledger = FileLedger(path, sinks, warned.append)
    ledger.start("a-run", {"optimizer": {"name": "adamw", "betas": [0.9, 0.999]}})
    ledger.log(1, {"loss": 2.0, "bad": float("nan")})
    ledger.log(2, {"loss": 1.0})
    ledger.note(2, "alarm: x")
    ledger.artifact(Path("model.onnx"), "model")
    ledger.close("ok")
    return warned


def test_sinks_get_what_the_file_gets(tmp_path: Path) -> None:
    memory = Memory()
    assert filled(tmp_path / "l.jsonl", memory=memory) == []
    assert memory.told == [
        ("start", "a-run", {"optimizer.name": "adamw", "optimizer.betas": "[0.9, 0.999]"}),
        ("log", 1, {"loss": 2.0}), ("log", 2, {"loss": 1.0}), ("note", 2, "alarm: x"),
        ("artifact", "model.onnx", "model"), ("finish", "ok"),
    ]  # fmt: skip
    again = Memory()
    assert replay(list(read(tmp_path / "l.jsonl")), again, "a-run", {}) == 3
    assert [t for t in again.told if t[0] == "log"] == [t for t in memory.told if t[0] == "log"]


def test_a_tracker_that_dies_is_dropped(tmp_path: Path) -> None:
    other = Memory()
    warned = filled(tmp_path / "l.jsonl", dying=Dying(), other=other)
    assert warned == ["tracker dying: dropped, ConnectionError: the server is gone"]
    assert ("log", 2, {"loss": 1.0}) in other.told
    assert len(list(read(tmp_path / "l.jsonl"))) == 3


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 0.2)
    started = time.monotonic()
    warned = filled(tmp_path / "l.jsonl", hanging=Hanging())
    assert time.monotonic() - started < 5
    assert "left behind" in warned[0]


def test_a_slow_tracker_loses_entries_and_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_WAITING", 3)
    gate = threading.Event()

    class Slow(Memory):
        def log(self, step: int, values: Mapping[str, float], /) -> None:
            gate.wait(10)

    warned: list[str] = []
    ledger = FileLedger(tmp_path / "l.jsonl", {"slow": Slow()}, warned.append)
    for step in range(50):
        ledger.log(step, {"loss": 1.0})
    gate.set()
    ledger.close("ok")
    assert any("entries were dropped" in line for line in warned)
    assert len(list(read(tmp_path / "l.jsonl"))) == 50


def test_rewind_forgets_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    ledger = FileLedger(path)
    for step in (10, 20, 30):
        ledger.log(step, {"loss": 1 / step})
    ledger.rewind(20)
    ledger.log(25, {"loss": 0.5})
    ledger.close("ok")
    assert [line["step"] for line in read(path)] == [10, 20, 25]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps({"step": 1, "values": {"a": 1.0}}) + '\n{"step": 2, "val')
    assert [line["step"] for line in read(path)] == [1]
    assert list(read(tmp_path / "none")) == []


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def made(name: str, **options: Any) -> Any:
    spec = resolve("tracker", name)
    return load_reference(spec.make)(spec.settings(**options))


LINES = [
    {"step": 1, "values": {"loss": 2.0}},
    {"step": 2, "values": {"loss": 1.0}},
    {"step": 2, "note": "done"},
]


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    replay(LINES, made("tensorboard", folder=str(tmp_path)), "a-run", {"x": 1})
    found = EventAccumulator(str(tmp_path / "a-run"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_a_database(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/m.db"
    replay(LINES, made("mlflow", uri=uri, experiment="e"), "a-run", {"optimizer.name": "adamw"})
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optimizer.name": "adamw"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 2.0),
        (2, 1.0),
    ]


@needs("wandb")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sink = made("wandb", folder=str(tmp_path))
    replay(LINES, sink, "a-run", {"x": 1})
    assert list(tmp_path.glob("wandb/offline-run-*"))
