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


def pairs() -> list[Any]:
    """Every core optimizer with every schedule; those that show nothing new on the way to CI are slow."""
    found = []
    for name in CORE:
        for schedule in sorted(table("schedule")):
            fast = name in {"adamw", "muon", "lbfgs"} or schedule in {"cosine", "plateau"}
            found.append(pytest.param(name, schedule, marks=() if fast else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "schedule"), pairs())
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
    settings = FitSettings(
        epochs=3, batch_size=8, validation_share=0.0,
        augment=Augmentation(rotate=20, shift=0.1, zoom=0.1, flip="both", crop=1),
    )  # fmt: skip
    whole, again = conv_net(), conv_net()
    fit(whole, IMAGES, settings, seed=0, progress=silent, label="t")
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    for step in Training(
        conv_net(), IMAGES, settings, seed=0, progress=silent, label="t", keep=tmp_path
    ).steps():
        if step == 7:
            break
    fit(again, IMAGES, settings, seed=0, progress=silent, label="t", keep=tmp_path)
    assert equal(whole, again)


def test_a_killed_training_diverges_like_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is to go back to is part of a snapshot."""
    settings = FitSettings(
        epochs=20, optimizer=OptimizerSettings(name="sgd", lr=0.9), clip_norm=None, halvings=6,
        schedule=ScheduleSettings(name="constant"), batch_size=8,
    )  # fmt: skip

    def wide() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))

    whole = wide()
    data = split_blobs()
    history = fit(whole, data, settings, seed=1, progress=silent, label="t")
    halvings: Any = history.events["halvings"]
    assert halvings
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    for step in Training(wide(), data, settings, seed=1, progress=silent, label="t", keep=tmp_path).steps():
        if step == max(1, halvings[0]["at"] - 3):
            break
    again = wide()
    second = fit(again, data, settings, seed=1, progress=silent, label="t", keep=tmp_path)
    assert second.events["halvings"] == halvings
    assert equal(whole, again)


IMAGES = loop.Split(
    x=torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)), y=torch.arange(40) % 2,
    x_validation=torch.zeros(0, 1, 6, 6), y_validation=torch.arange(0),
)  # fmt: skip


def conv_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3),
        torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2),
    )  # fmt: skip


@pytest.mark.parametrize("name", [*CORE, *(pytest.param(n, marks=needs_extra) for n in RESUMES)])
def test_kernels_in_channels_last(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State of kernels keeps its layout in memory, so that sums over it round alike."""
    free = resolve("optimizer", name).schedule_free
    settings = FitSettings(
        epochs=2, batch_size=8 if name != "lbfgs" else "full", validation_share=0.0,
        optimizer=OptimizerSettings(name=name), schedule=ScheduleSettings(name="constant" if free else "linear"),
        max_steps=8 if name != "lbfgs" else None,
    )  # fmt: skip
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    models = []
    for folder in (None, tmp_path):
        if folder is not None:
            training = Training(conv_net(), IMAGES, settings, seed=0, progress=silent, label="t", keep=folder)
            for step in training.steps():
                if step == (3 if name != "lbfgs" else 1):
                    break
        models.append(conv_net())
        history = fit(models[-1], IMAGES, settings, seed=0, progress=silent, label="t", keep=folder)
    assert history.events["resumed_at"] is not None
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
