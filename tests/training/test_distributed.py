"""Two processes under torchrun, with gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

_PROFILE = """
name: two
seed: 3
threads: 1
data: {{name: digits}}
model: {{name: mlp, hidden: [32], norm: {norm}}}
train: {{epochs: 12, batch_size: 64, validation_share: 0.1, optimizer: {{name: {optimizer}}}, accumulate: {parts}}}
candidates: {{fp32: []}}
targets: [host-cpu]
"""


def run(folder: Path, ranks: int, **settings: object) -> dict[str, torch.Tensor]:
    profile = folder / "p.yaml"
    profile.write_text(_PROFILE.format(**settings))
    output = folder / f"{ranks}.safetensors"
    command = ["-m", "hwopt", "train", str(profile), "-o", str(output), "--json", "-q"]
    if ranks > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]  # one document: the other process says nothing
    assert facts["history"][-1]["validation_accuracy"] > 0.5
    return load_file(output)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"norm": "none", "optimizer": "sgd", "parts": 1}, marks=pytest.mark.slow),
        pytest.param({"norm": "layer", "optimizer": "adamw", "parts": 5}, marks=pytest.mark.slow),
    ],
    ids=["sgd", "adamw-accumulated"],
)
def test_two_processes_are_as_good_as_one(tmp_path: Path, settings: dict[str, object]) -> None:
    """Without batch norm the averaged gradient is that of the whole batch: the same weights, up to rounding."""
    one, two = run(tmp_path, 1, **settings), run(tmp_path, 2, **settings)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-3, rtol=2e-2)
