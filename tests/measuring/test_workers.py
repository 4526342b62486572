"""Processes that measure: what they answer, and what is said when one dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from hwopt.config.hardware import shipped
from hwopt.core.backend import Recipe
from hwopt.errors import HwoptError, StageFailedError
from hwopt.latency.measure import Candidate, Effort, look_inside, measure_all, working
from hwopt.latency.workers import Process
from hwopt.testing.models import float_model, quantized_model

QUICK = Effort(budget_seconds=1.0, samples=500, sample_seconds=0.5)


def candidate(path: Path) -> Candidate:
    x = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    return Candidate(model=path, runtime="onnxruntime", hardware=shipped("generic-cpu"), feed={"input": x})


def test_three_candidates_in_complete_rounds(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    other, _ = quantized_model(tmp_path, "generic-cpu")
    result = measure_all([candidate(path), candidate(path), candidate(other)], QUICK)
    assert all(len(blocks) == 4 for blocks in result.rounds.blocks)  # the reference workload is the fourth
    assert set(result.rounds.place) == {0, 1}
    same = result.compare(1).interval()
    assert 0.8 < same.estimate < 1.25
    latency = result.latency_ms(2)
    assert 500 <= int(latency["count"] or 0) <= 510  # an equal share of every session
    assert 0 < float(latency["p50"] or 0) < 1e3
    reference = result.reference(2)
    assert reference is not None
    multiple = result.rounds.seconds(2) * 1e3 / float(str(reference["milliseconds"]))
    assert reference["multiple"]["estimate"] == pytest.approx(multiple, rel=0.3)  # type: ignore[index,call-overload]
    best, ratios = result.fastest([0, 1, 2])
    assert set(ratios) == {0, 1, 2}
    assert ratios[best] == {"estimate": 1.0, "low": 1.0, "high": 1.0}


def test_inside_a_model(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "generic-cpu")
    inside = look_inside(candidate(path))
    weighted = [node for node in inside.nodes if node.weighted]
    assert len(weighted) == 4
    assert all(node.integer and node.placement == "CPU" for node in weighted)
    assert str(inside.describe["library"]).startswith("onnxruntime")
    assert sum(t.seconds for t in inside.operators) > 0
    assert 0 < int(str(inside.footprint["added_bytes"])) < int(str(inside.footprint["peak_bytes"]))
    assert float(str(inside.footprint["load_seconds"])) > 0


def test_a_refused_model_is_told_in_the_runtimes_words(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x01 nothing")
    with pytest.raises(HwoptError, match=r"ONNX Runtime does not load broken\.onnx"):
        measure_all([candidate(path)], QUICK)
    kept, refused = working([candidate(path)])
    assert (kept, list(refused)) == ([], ["onnxruntime"])


def test_a_crash_and_a_hang_are_failed_steps(tmp_path: Path) -> None:
    with Process(1) as process:
        os.kill(process._process.pid, signal.SIGSEGV)
        with pytest.raises(StageFailedError, match="SIGSEGV"):
            process.ask("rounds", rounds=[])
    with Process(1, seconds=0.5) as process:
        os.kill(process._process.pid, signal.SIGSTOP)
        with pytest.raises(StageFailedError, match="did not answer for"):
            process.ask("rounds", rounds=[])


def test_questions_out_of_order_and_unknown_ones(tmp_path: Path) -> None:
    with Process(1) as process:
        with pytest.raises(StageFailedError, match="nothing is loaded"):
            process.ask("rounds", rounds=[])
        with pytest.raises(StageFailedError, match="no operation"):
            process.ask("_load")


def test_a_folder_of_the_users_does_not_shadow_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hwopt").mkdir()
    (tmp_path / "hwopt" / "__init__.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    path, _ = float_model(tmp_path)
    assert working([candidate(path)])[1] == {}


def test_recipes_survive_the_way() -> None:
    recipe = Recipe(threads=3, spinning=True)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_nothing_of_the_users_project_shadows_what_the_worker_imports(tmp_path: Path) -> None:
    """A pipeline runs with the project's folder in front of its path; the worker has it behind its own."""
    from hwopt.plugins import user_modules

    for name in ("random", "queue", "signal", "types"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    path, _ = float_model(tmp_path)
    with user_modules(tmp_path):
        assert working([candidate(path)])[1] == {}


def test_a_crash_names_the_file(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    with Process(1) as process:
        os.kill(process._process.pid, signal.SIGKILL)
        for _ in range(2):  # whoever asks again is told again
            with pytest.raises(StageFailedError, match=r"asked to load float\.onnx: SIGKILL"):
                process.ask("load", sides=[candidate(path).to_json(path)], sessions=1)


def test_inputs_may_have_any_name(tmp_path: Path) -> None:
    import onnx

    path, _ = float_model(tmp_path)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["file" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "file"
    onnx.save(model, path)
    x = np.zeros((1, 1, 8, 8), np.float32)
    one = Candidate(model=path, runtime="onnxruntime", hardware=shipped("generic-cpu"), feed={"file": x})
    assert working([one])[1] == {}
