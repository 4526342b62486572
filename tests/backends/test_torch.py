"""torch as a runtime: checkpoints, in float, as a point of reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hwopt
from hwopt import checkpoints
from hwopt.backends.torch import spec
from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Optimization
from hwopt.core.backend import Recipe as Execution
from hwopt.core.choices import Choice
from hwopt.core.dataset import SampleShape
from hwopt.errors import ConfigError, StageFailedError
from hwopt.latency.costs import exported
from hwopt.models.build import build_model
from hwopt.plugins import load_reference
from hwopt.testing.models import Reference, float_model
from hwopt.testing.runtime import RuntimeContract

SHAPE = (1, 8, 8)


def checkpoint(folder: Path) -> tuple[Path, Reference]:
    torch.manual_seed(0)
    choice = Choice(name="cnn", factory=None, options={"width": 4})
    module = build_model(choice, SHAPE, 4, None).eval()
    path = folder / "net.safetensors"
    recipe = checkpoints.Recipe(model=choice, sample_shape=SampleShape(SHAPE), classes=4)
    checkpoints.save(path, module, recipe)

    def reference(x: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return path, reference


class TestEager(RuntimeContract):
    integer = False
    weighted = 5

    @pytest.fixture
    def load(self) -> LoadFunction:
        function: LoadFunction = load_reference("hwopt.backends.torch.runtime:load")
        return function

    def float_file(self, folder: Path) -> tuple[Path, Reference]:
        return checkpoint(folder)

    def test_takes_checkpoints_only(self, load: LoadFunction, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not ONNX files"):
            load(float_model(tmp_path)[0], Execution(), shipped(self.device))
        with pytest.raises(StageFailedError, match="not files as written"):
            load(checkpoint(tmp_path)[0], Execution(optimization=Optimization.NONE), shipped(self.device))


@pytest.mark.slow
class TestCompiled(TestEager):
    @pytest.fixture
    def load(self) -> LoadFunction:
        if not spec.probe_compile().available:
            pytest.skip(str(spec.probe_compile().reason))
        function: LoadFunction = load_reference("hwopt.backends.torch.runtime:load_compiled")
        return function


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec.shutil, "which", lambda name: None)
    state = spec.probe_compile()
    assert (state.available, "C++ compiler" in str(state.reason)) == (False, True)


def test_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "first_gpu", lambda: "no NVIDIA GPU")
    assert spec.probe_cuda().reason == "no NVIDIA GPU"
    gpu = type("Gpu", (), {"title": "L4", "isa": "cc8.9"})()
    monkeypatch.setattr(spec, "first_gpu", lambda: gpu)
    if "+cpu" in torch.__version__:
        assert "without CUDA" in str(spec.probe_cuda().reason)


@pytest.mark.slow
def test_a_checkpoint_beside_its_onnx_file(tmp_path: Path) -> None:
    """The same network in two runtimes, in one set of rounds; each takes its own kind of file."""
    path, _ = checkpoint(tmp_path)
    torch.manual_seed(0)
    module = checkpoints.load(path, None).module.eval()
    onnx_file = tmp_path / "net.onnx"
    onnx_file.write_bytes(exported(module, SHAPE).SerializeToString())
    found = hwopt.benchmark(
        [onnx_file, path], runtimes=("onnxruntime", "torch"), budget_seconds=0.5, processes=1
    )
    assert [(Path(r["model"]).suffix, r["runtime"]) for r in found["results"]] == [
        (".onnx", "onnxruntime"),
        (".safetensors", "torch"),
    ]
    assert len(found["refused"]) == 2
    assert all("does not take" in r["reason"] for r in found["refused"])
    assert found["results"][1]["against"]["runtime"] == "onnxruntime"  # the first file is not there in torch
    eager = found["results"][1]
    assert eager["integer_share"] == 0.0
    assert np.isfinite(eager["latency_ms"]["p50"])
