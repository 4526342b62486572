"""Files from others that must be refused: with a reason, at once, and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from benchmarks.fuzz_models import fuzz
from hwopt.archives import unpack_zip
from hwopt.config.profile import load
from hwopt.data.npz import read_arrays
from hwopt.errors import ConfigError, HwoptError, UnsafeInputError
from hwopt.model_check import check_model
from hwopt.testing.models import float_model, quantized_model
from tests.conftest import ROOT, Command
from tests.hostile.corpus import ARRAYS, MODELS, PROFILES, ZIPS, Case, with_weight

SECONDS, MEGABYTES = 5.0, 500


@pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)
def test_models_are_refused(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    with pytest.raises(UnsafeInputError) as caught:
        check_model(path)
    assert caught.value.exit_code == 6
    (problem,) = caught.value.problems
    assert case.says in problem.problem
    assert problem.where == str(path)
    assert "\n" not in problem.problem
    assert len(problem.problem) < 400


@pytest.mark.parametrize("case", PROFILES, ids=lambda c: c.name)
def test_profiles_are_refused(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    assert any(case.says in p.problem for p in caught.value.problems)
    assert all((p.where or "").startswith(str(path)) for p in caught.value.problems)


@pytest.mark.parametrize("case", ARRAYS, ids=lambda c: c.name)
def test_arrays_are_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(HwoptError) as caught:
        read_arrays(case.build(tmp_path))
    assert caught.value.exit_code in {2, 6}
    assert case.says in caught.value.problems[0].problem


@pytest.mark.parametrize("case", ZIPS, ids=lambda c: c.name)
def test_archives_are_refused_and_nothing_is_left(case: Case, tmp_path: Path) -> None:
    path, target = case.build(tmp_path), tmp_path / "inside" / "out"
    with pytest.raises(HwoptError) as caught:
        unpack_zip(path, target)
    assert caught.value.exit_code in {2, 6}
    assert case.says in caught.value.problems[0].problem
    assert not target.exists()
    assert not list((tmp_path / "inside").iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_good_archive_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/file.txt", "words")
    unpack_zip(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "folder" / "file.txt").read_text() == "words"


def test_there_are_sixty() -> None:
    assert len(MODELS) + len(PROFILES) >= 60


_EACH = """
import json, sys, tempfile, time
from pathlib import Path
import hwopt.model_check
from hwopt.errors import HwoptError
from tests.hostile.corpus import MODELS
def peak(reset):
    if reset: Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(next(l for l in text.splitlines() if l.startswith("VmHWM:")).split()[1]) / 1e3
found = {}
for case in MODELS:
    with tempfile.TemporaryDirectory() as folder:
        path = case.build(Path(folder))
        peak(True)
        start = time.monotonic()
        try: hwopt.model_check.check_model(path)
        except HwoptError: pass
        found[case.name] = [time.monotonic() - start, peak(False)]
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory of a part cannot be read here"
)
def test_refusals_take_little_time_and_memory() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _EACH], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(said.stdout)
    assert len(found) == len(MODELS)
    for name, (seconds, megabytes) in found.items():
        # Twice the promise: another job may share the machine.
        assert seconds <= 2 * SECONDS, name
        assert megabytes <= MEGABYTES, name


def test_the_verb_refuses_with_code_six(tmp_path: Path, command: Command) -> None:
    case = next(c for c in MODELS if c.name == "a loop of 2^62 trips")
    outcome = command("check", case.build(tmp_path))
    assert outcome.code == 6
    assert "trips" in outcome.err
    assert "m.onnx" in outcome.err


def test_sound_models_are_taken(tmp_path: Path) -> None:
    check_model(float_model(tmp_path)[0])
    check_model(quantized_model(tmp_path, "generic-cpu")[0])


def test_weights_beside_the_model_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    tensor = onnx.numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "w")
    model = with_weight(tensor)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert (
        onnx.load(path, load_external_data=False).graph.initializer[0].data_location == TensorProto.EXTERNAL
    )
    check_model(path)


def test_mutants_break_nothing() -> None:
    said: list[str] = []
    found, longest = fuzz(400, seed=7, runs=False, say=said.append)
    assert found["broken"] == found["slow"] == 0, said
    assert found["refused with 6"] > 100
    assert found["accepted"] > 20
    assert longest < 2 * SECONDS


@pytest.mark.slow
def test_ten_thousand_mutants_and_the_runtime() -> None:
    said: list[str] = []
    found, _ = fuzz(10_000, seed=0, runs=True, say=said.append)
    assert found["broken"] == found["slow"] == 0, said
