"""The stage from settings to checkpoint: every method comes back from its file as the same function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwopt import checkpoints
from hwopt.config.hardware import shipped
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.choices import Choice
from hwopt.core.dataset import Dataset
from hwopt.core.stage import StageContext, StageResult
from hwopt.data.digits import DigitsOptions
from hwopt.data.digits import load as load_digits
from hwopt.models.build import build_model
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.stages.quantize.run import run
from hwopt.stages.quantize.spec import QuantizeConfig, check, check_input
from tests.quantization.nets import run_onnx

CNN = Choice(name="cnn", factory=None, options={"width": 8})


def small_digits() -> Dataset:
    whole = load_digits(DigitsOptions())
    return Dataset(
        name="digits",
        x_train=whole.x_train[:256],
        y_train=whole.y_train[:256],
        x_test=whole.x_test[:64],
        y_test=whole.y_test[:64],
        classes=whole.classes,
    )


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    torch.manual_seed(0)
    shape = small_digits().x_train.shape[1:]
    module = build_model(CNN, shape, 10, None)
    path = tmp_path / "float.safetensors"
    checkpoints.save(path, module, checkpoints.Recipe(model=CNN, sample_shape=shape, classes=10))
    return Artifact(kind=Kind.CHECKPOINT, digest="", bytes=1, path=path)


def from_yaml(settings: dict[str, Any]) -> QuantizeConfig:
    """As a profile is read: lists become tuples."""
    return QuantizeConfig.model_validate_json(json.dumps(settings))


def quantized(source: Artifact, folder: Path, device: str, **settings: Any) -> tuple[StageResult, list[str]]:
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    context = StageContext(
        workdir=folder,
        seed=0,
        threads=1,
        hardware=shipped(device),
        model=CNN.to_json(),
        data=small_digits,
        progress=said.append,
    )
    return run(context, {"checkpoint": source}, from_yaml(settings)), said


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tuned": ("generic-cpu", {}),
    "rules": (
        "zcu104",
        {
            "tune": False,
            "rules": [
                {"layers": ".*0_weight", "weights": "int4"},
                {"operators": ["Gemm"], "keep_float": True},
            ],
        },
    ),
    "mixed": (
        "zcu104",
        {"tune": False, "weights": "int4", "activations": "int4", "mixed": {"activations": "int8"}},
    ),
    "adaround": ("generic-cpu", {"tune": False, "adaround": {"iterations": 20}}),
    "qat": ("generic-cpu", {"tune": False, "method": "qat", "epochs": 1}),
    "qat, all there is": (
        "generic-cpu",
        {
            "tune": False,
            "method": "qat",
            "epochs": 2,
            "learn_zero_points": True,
            "batch_norm_epochs": 1,
            "oscillations": {"method": "freeze"},
        },
    ),
    "qat, damped": (
        "zcu104",
        {"tune": False, "method": "qat", "epochs": 1, "weights": "int3", "oscillations": {}},
    ),
    "dynamic": ("generic-cpu", {"method": "dynamic"}),
    "weight only": ("generic-cpu", {"method": "weight_only", "weights": "int4", "block": 16}),
    "portable": ("portable", {"tune": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_comes_back_as_the_function_that_was_saved(
    name: str, source: Artifact, tmp_path: Path
) -> None:
    device, settings = METHODS[name]
    result, _ = quantized(source, tmp_path / "a", device, **settings)
    again, _ = quantized(source, tmp_path / "b", device, **settings)
    first = result.files["checkpoint"].read_bytes()
    assert first == again.files["checkpoint"].read_bytes()  # same seed, same bytes
    network = checkpoints.load(result.files["checkpoint"], None)
    x = small_digits().x_test
    with torch.no_grad():
        twin = network.module.eval()(torch.from_numpy(x)).numpy()
    path = tmp_path / "m.onnx"
    export_onnx(deployed(network.module), network.recipe.sample_shape, path, {})
    (written,) = run_onnx(path, {"input": x}, optimized=False)
    # Products are summed in another order: a value at a code's edge may move by a step, here and there.
    assert np.mean(np.abs(written - twin).max(axis=1) > 1e-3 * np.abs(twin).max()) <= 0.1
    assert np.mean(written.argmax(1) == twin.argmax(1)) >= 0.98


def test_facts_say_what_was_done(source: Artifact, tmp_path: Path) -> None:
    device, settings = METHODS["qat, all there is"]
    facts = quantized(source, tmp_path, device, **settings)[0].facts
    assert facts["live_norms"] == 0 or int(str(facts["live_norms"])) > 0
    assert 0 <= float(str(facts["frozen_weights"])) <= 1
    history = facts["qat_history"]
    assert isinstance(history, list)
    assert len(history) == 2
    tuned, said = quantized(source, tmp_path, "generic-cpu")
    assert isinstance(tuned.facts["trials"], list)
    assert any("ways tried" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "ptq", "epochs": 3}, "does not train"),
        ({"method": "dynamic", "observer": "mse"}, "neither trains nor has scales"),
        ({"method": "weight_only", "activations": "uint8"}, "neither trains nor calibrates"),
        ({"block": 32}, "a scale a channel"),
        ({"method": "qat", "adaround": {}}, "learns its rounding"),
        ({"observer": "mean"}, "unknown observer"),
        ({"observer": {"name": "mse", "percentile": 99.0}}, "takes no option"),
        ({"rules": [{"layers": "("}]}, "regular expression"),
        ({"mixed": {"layers": 2.0}}, "less than or equal to 1"),
        ({"smooth": 2.0}, "less than or equal to 1"),
    ],
)
def test_settings_that_would_be_ignored_or_mean_nothing(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_yaml(settings)


@pytest.mark.parametrize(
    ("device", "settings", "says"),
    [
        ("x86-avx2", {"weights": "int4"}, "x86-avx2 runs int8"),
        ("x86-avx2", {"rules": [{"weights": "int2"}]}, "x86-avx2 runs int8"),
        ("x86-avx2", {"mixed": {"raise_to": "int16"}}, "raised weights are int16"),
        ("zcu104", {"method": "dynamic"}, "is for CPUs"),
        ("x86-avx2", {"method": "weight_only", "weights": "int3"}, "weight_only weights are int3"),
    ],
)
def test_what_the_device_cannot_execute(device: str, settings: dict[str, Any], says: str) -> None:
    problems = check(from_yaml(settings), shipped(device))
    assert any(says in text for text, _ in problems), problems


def test_an_onnx_model_takes_no_training() -> None:
    assert check_input(QuantizeConfig(method="qat"), Kind.ONNX)
    assert check_input(QuantizeConfig.model_validate({"adaround": {}}), Kind.ONNX)
    assert not check_input(QuantizeConfig(), Kind.ONNX)
    assert not check_input(QuantizeConfig(method="qat"), Kind.CHECKPOINT)
