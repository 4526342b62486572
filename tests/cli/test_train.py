"""``hwopt train`` and its verbs, from the outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file

from tests.conftest import Command

PROFILE = """\
name: small
seed: 3
threads: 1
data: {name: digits}
model: {name: mlp, hidden: [24]}
train: {epochs: 3, batch_size: 64}
compare: {entrants: [adamw, sgd], accuracy: 0.5, steps: 20, every: 10, trials: 1, seeds: 2, samples: 100}
candidates: {fp32: []}
targets: [host-cpu]
"""


TABLE = "data={name: csv, path: t.csv, label: y}"


def hwopt(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hwopt", *words], cwd=cwd, capture_output=True, text=True, timeout=240,
        env=environment, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(PROFILE)
    return tmp_path


@pytest.mark.slow
def test_train_is_short_for_train_run(folder: Path, command: Command) -> None:
    short = command("train", "p.yaml", "-o", "a.safetensors", "--json")
    long = command("train", "run", "p.yaml", "-o", "b.safetensors", "-q")
    assert short.code == long.code == 0, short.err + long.err
    facts = json.loads(short.out)["facts"]
    assert facts["training_events"]["parameter_groups"][0]["optimizer"] == "adamw"
    assert facts["training_events"]["fit"]["verdict"] in {"good", "underfitting", "overfitting"}
    assert "weight decay on 2 tensors" in short.err
    first, second = (load_file(folder / f"{n}.safetensors") for n in "ab")
    assert all((first[k] == second[k]).all() for k in first)
    assert not list(folder.glob(".*.partial"))


@pytest.mark.slow
def test_a_killed_training_goes_on(folder: Path) -> None:
    """SIGKILL in the middle; the same command ends at the weights of an undisturbed one."""
    long = ("train", "p.yaml", "--set", "train.epochs=400", "--set", "train.batch_size=16")
    whole = hwopt(*long, "-o", "whole.safetensors", "-q", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    victim = subprocess.Popen(
        [sys.executable, "-m", "hwopt", *long, "-o", "killed.safetensors"], cwd=folder, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "HWOPT_TEST_SNAPSHOT_SECONDS": "0.1"},
    )  # fmt: skip
    assert victim.stderr is not None
    for line in victim.stderr:
        if "epoch 40/400" in line:
            victim.send_signal(signal.SIGKILL)
            break
    victim.wait(timeout=60)
    victim.stderr.close()
    assert (folder / ".killed.safetensors.partial" / "training.safetensors").is_file()
    rest = hwopt(*long, "-o", "killed.safetensors", cwd=folder)
    assert "goes on after step" in rest.stderr
    first, second = (load_file(folder / f"{n}.safetensors") for n in ("whole", "killed"))
    assert all((first[k] == second[k]).all() for k in first)


def test_compare(folder: Path, command: Command) -> None:
    done = command("train", "compare", "p.yaml", "-o", "race.json")
    assert done.code == 0, done.err
    assert "adamw" in done.out
    assert "within noise" in done.out or "faster" in done.out or "slower" in done.out
    assert len(json.loads((folder / "race.json").read_text())["trials"]) == 6
    assert not (folder / ".race.json.trials").exists()


def test_schedule(folder: Path, command: Command) -> None:
    done = command("train", "schedule", "p.yaml", "--plot", "lr.svg", "--json")
    assert done.code == 0, done.err
    rates = json.loads(done.out)["rates"]
    assert max(rate for _, rate in rates) == pytest.approx(1e-3, rel=0.02)
    ElementTree.parse(folder / "lr.svg")
    drawn = command("train", "schedule", "p.yaml", "--set", "train.schedule.name=wsd")
    assert "█" in drawn.out


def test_probe_and_surface(folder: Path, command: Command) -> None:
    done = command("train", "probe", "p.yaml", "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["preflight"]["problems"] == []
    assert found["batch"]["chosen"] in found["batch"]["sizes"]
    command("train", "p.yaml", "-o", "a.safetensors", "-q")
    done = command("train", "surface", "p.yaml", "a.safetensors", "--plot", "s.svg", "--json", "-q")
    assert done.code == 0, done.err
    slices = json.loads(done.out)["slices"]
    assert [s["name"] for s in slices] == ["random", "float → int8"]
    assert all(len(s["losses"]) == 21 and min(s["losses"]) > 0 for s in slices)
    ElementTree.parse(folder / "s.svg")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("train", "compar", "p.yaml"), 2, "did you mean 'compare'"),
        (("train", "none.yaml", "-o", "x"), 2, "none.yaml"),
        (("train", "p.yaml", "-o", "x", "--set", "train.optimizer.name=adamq"), 2, "did you mean 'adam'"),
        (("train", "p.yaml", "-o", "x", "--set", "train.batch_size=1"), 2, "batches of 1 sample and batch norm"),
        (("train", "p.yaml", "-o", "x", "--set", "train.augment={rotate: 5}", "--set", TABLE), 2, "augment changes"),
        (("train", "compare", "p.yaml", "--set", "compare.entrants=[adamw]"), 2, "compare.entrants"),
        (("train", "surface", "p.yaml", "none.safetensors"), 2, "no such file"),
        (("train", "schedule", "p.yaml", "--set", "train.epochs=100000"), 2, "is not drawn"),
        (("train", "p.yaml", "-o", "x", "--set", "train.schedule={name: cosine, warmup: 500}"), 2, "a warm-up of 500"),
        (("train", "schedule", "p.yaml", "--plot", "/proc/none/x.svg"), 2, "cannot write"),
        (("train", "p.yaml", "-o", "/proc/none/x.safetensors"), 2, "cannot write"),
        (("train", "probe", "p.yaml", "--set", "model={factory: 'broken:build'}"), 5, "RuntimeError: not today"),
        (("track", "push", "latest", "--to", "tensorbord"), 2, "no run 'latest'"),
        (("pipeline", "validate", "p.yaml", "--set", "track=[tensorbord]"), 2, "did you mean 'tensorboard'"),
        (("pipeline", "validate", "p.yaml", "--set", "track=[{name: wandb, mode: onlin}]"), 2, "mode"),
    ],
)  # fmt: skip
def test_bad_input(folder: Path, command: Command, words: tuple[str, ...], code: int, text: str) -> None:
    (folder / "broken.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.inner = nn.Linear(64, classes)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError('not today')\n"
        "        return self.inner(x.flatten(1))\n"
        "def build(classes):\n"
        "    return Net(classes)\n"
    )
    (folder / "t.csv").write_text("a,y\n" + "\n".join(f"{i},{i % 2}" for i in range(50)))
    done = command(*words)
    assert done.code == code, done.err
    assert text in done.err
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
