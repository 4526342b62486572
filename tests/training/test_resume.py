"""Kill anywhere, resume, and end at the same weights, bit for bit: every core optimizer × every schedule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import hwopt.training.loop as loop
from hwopt.core.progress import silent
from hwopt.plugins import resolve, table
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.loop import Training, fit
from hwopt.training.settings import Augmentation, Averaging, EarlyStopping, FitSettings
from hwopt.training.snapshot import load, pack, save, unpack
from tests.training.nets import equal, net, split_blobs
from tests.training.test_optimizers import CORE, EXTRA, needs_extra

DATA = split_blobs(60)


def interrupted(settings: FitSettings, folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The network after a training that was left at step ``at`` and taken up by another process' objects."""
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    first = Training(net(), DATA, settings, seed=1, progress=silent, label="t", keep=folder)
    for step in first.steps():
        if step == at:
            break
    said: list[str] = []
    model = net()
    second = Training(model, DATA, settings, seed=1, progress=said.append, label="t", keep=folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all that counts comes from the snapshot
    for _ in second.steps():
        pass
    history = second.finish()
    assert any(f"goes on after step {at}" in line for line in said)
    assert history.events["resumed_at"] == at
    return model


def check(settings: FitSettings, folder: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    whole = net()
    history = fit(whole, DATA, settings, seed=1, progress=silent, label="t")
    at = 1 + zlib.crc32(tag.encode()) % (history.steps - 1)
    assert equal(whole, interrupted(settings, folder, at, monkeypatch)), f"killed after step {at}"


@pytest.mark.parametrize("schedule", sorted(table("schedule")))
@pytest.mark.parametrize("name", CORE)
def test_core(name: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve("schedule", schedule)
    settings = FitSettings(
        epochs=3 if name != "lbfgs" else 8,
        batch_size=12 if name != "lbfgs" else "full",
        optimizer=OptimizerSettings(name=name),
        schedule=ScheduleSettings(name=schedule, warmup=0.0 if spec.starts_low else 3),
    )
    check(settings, tmp_path, monkeypatch, name + schedule)


RESUMES = [n for n in EXTRA if resolve("optimizer", n).resumes]


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_extra) for n in RESUMES])
def test_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = resolve("optimizer", name).schedule_free
    settings = FitSettings(
        epochs=3, batch_size=12, optimizer=OptimizerSettings(name=name),
        schedule=ScheduleSettings(name="constant" if free else "cosine"),
    )  # fmt: skip
    check(settings, tmp_path, monkeypatch, name)


@pytest.mark.parametrize(
    "more",
    [
        {"average": Averaging()},
        {"average": Averaging(kind="swa", start=0.4)},
        {"early_stopping": EarlyStopping(patience=1), "optimizer": OptimizerSettings(lr=0.3)},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp64"},
        {"accumulate": 3, "clip_value": 0.1, "l1": 1e-3, "l2": 1e-3, "max_weight": 0.4},
        {"mixup": 0.4, "label_smoothing": 0.1},
        {"max_steps": 13},
    ],
    ids=lambda more: "-".join(more),
)
def test_everything_else(more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(FitSettings(**{"epochs": 5, "batch_size": 12, **more}), tmp_path, monkeypatch, str(more))


def test_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = loop.Split(x=images, y=torch.arange(40) % 2, x_validation=images[:0], y_validation=torch.arange(0))
    settings = FitSettings(
        epochs=3, batch_size=8, validation_share=0.0,
        augment=Augmentation(rotate=20, shift=0.1, zoom=0.1, flip="both", crop=1),
    )  # fmt: skip
    models = []
    for folder in (None, tmp_path):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2)
        )
        monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
        if folder is not None:
            for step in Training(
                model, data, settings, seed=0, progress=silent, label="t", keep=folder
            ).steps():
                if step == 7:
                    break
        fit(model, data, settings, seed=0, progress=silent, label="t", keep=folder)
        models.append(model)
    assert equal(*models)


def test_other_conditions_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    settings = FitSettings(epochs=2, batch_size=12)
    for step in Training(net(), DATA, settings, seed=1, progress=silent, label="t", keep=tmp_path).steps():
        if step == 5:
            break
    assert list(tmp_path.iterdir())
    other = split_blobs(66)
    for seed, given, data, model in (
        (2, settings, DATA, net()),
        (1, settings.model_copy(update={"label_smoothing": 0.1}), DATA, net()),
        (1, settings, other, net()),
        (1, settings, DATA, net(seed=3)),
    ):
        said: list[str] = []
        fit(model, data, given, seed=seed, progress=said.append, label="t", keep=tmp_path)
        assert not any("goes on" in line for line in said)


def test_a_damaged_snapshot_is_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    save(path, {"a": torch.ones(3)}, "x")
    assert load(path, "y") is None
    path.write_bytes(path.read_bytes()[:-5])
    assert load(path, "x") is None
    path.write_bytes(b"")
    assert load(path, "x") is None


def test_pack_keeps_everything() -> None:
    state = {
        0: [torch.ones(2), None, True, 1.5, float("inf"), {"k": (1, "a")}],
        (0, 1): {"nested": [torch.zeros((), dtype=torch.bfloat16)]},
        "function": print,
    }
    tensors: dict[str, torch.Tensor] = {}
    back = unpack(pack(state, tensors), tensors)
    assert back[0][1:] == [None, True, 1.5, float("inf"), {"k": (1, "a")}]
    assert torch.equal(back[0][0], torch.ones(2))
    assert back[0, 1]["nested"][0].dtype is torch.bfloat16
    assert repr(back["function"]).startswith("<hwopt.training.snapshot._Keep")


_SCRIPT = """
import sys, time, torch
from pathlib import Path
import hwopt.training.loop as loop
from hwopt.training.loop import fit
from hwopt.training.settings import FitSettings
from tests.training.nets import net, split_blobs
torch.set_num_threads(1)
loop.SNAPSHOT_SECONDS = 0.05
def say(text):
    print(text, flush=True)
class Slow:
    def epoch(self, epoch): pass
    def penalty(self, share): return None
    def stepped(self): time.sleep(float(sys.argv[2]))
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
model = net()
fit(model, split_blobs(60), FitSettings(epochs=40, batch_size=12), seed=1, progress=say, label="t",
    keep=Path(sys.argv[1]), hooks=[Slow()])
print("sum", sum(float(p.detach().double().sum()) for p in model.parameters()).hex())
"""


def test_kill_nine(tmp_path: Path) -> None:
    """A real process, killed in the middle; the next one ends where an undisturbed one ends."""
    root = Path(__file__).parents[2]

    def start(folder: str, pause: str) -> subprocess.Popen[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(tmp_path / folder), pause],
            cwd=root, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    whole, _ = start("whole", "0").communicate(timeout=120)
    victim = start("killed", "0.02")
    assert victim.stdout is not None
    for line in victim.stdout:
        if "epoch 10/40" in line:
            victim.send_signal(signal.SIGKILL)
            break
    victim.wait(timeout=60)
    victim.stdout.close()
    assert victim.returncode == -signal.SIGKILL
    rest, _ = start("killed", "0").communicate(timeout=120)
    assert "goes on after step" in rest
    assert rest.splitlines()[-1] == whole.splitlines()[-1]
