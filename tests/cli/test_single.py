"""The single verbs, one after the other, as a user would call them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import hwopt as package
from hwopt.errors import ConfigError
from hwopt.testing.models import images, tiny_net
from tests.conftest import Command

PROFILE = """\
name: small
data: {name: digits}
model: {name: cnn, width: 8}
train: {epochs: 6, batch_size: 64, optimizer: {lr: 3.0e-3}}
candidates: {fp32: []}
targets: [host-cpu]
"""


@pytest.mark.slow
def test_train_prune_quantize_export_bench(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE)
    steps = [
        ("train", "p.yaml", "-o", "a.safetensors"),
        ("prune", "p.yaml", "a.safetensors", "--ratio", "0.5", "--target", "zcu104", "-o", "b.safetensors"),
        ("quantize", "p.yaml", "b.safetensors", "--target", "x86-avx2", "--explain", "-o", "c.safetensors"),
        ("export", "p.yaml", "a.safetensors", "-o", "a.onnx"),
        ("export", "p.yaml", "c.safetensors", "-o", "c.onnx"),
    ]
    said = {}
    for step in steps:
        outcome = command(*step)
        assert outcome.code == 0, outcome.err
        said[step[0], step[2]] = outcome.out
        assert (tmp_path / step[-1]).stat().st_size > 0
    table = said["quantize", "b.safetensors"]
    assert "int8 [-64, 63] per channel" in table
    assert "saturates without VNNI" in table
    assert "int32 at input scale" in table
    outcome = command("bench", "a.onnx", "c.onnx", "--time-budget", "1", "--json")
    assert outcome.code == 0, outcome.err
    float_row, int_row = outcome.json["results"]
    assert (float_row["integer_share"], int_row["integer_share"]) == (0.0, 1.0)
    assert int_row["speedup"]["estimate"] > 0
    assert int_row["tier"] == "measured"


def test_pruning_from_a_notebook() -> None:
    net = tiny_net()
    small, facts = package.prune(net, hardware="zcu104", samples=images(), macs=0.6)
    assert small(images()).shape == net(images()).shape
    assert facts["pruning_goal"]["met"]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    small, facts = package.prune(net, hardware="zcu104", samples=images(), ratio=0.5)
    assert [(c["before"], c["after"]) for c in facts["cuts"]] == [(16, 8)]
    with pytest.raises(ConfigError, match="needs labelled samples"):
        package.prune(net, hardware="zcu104", samples=images(), ratio=0.5, importance="taylor")
    with pytest.raises(ValueError, match="exactly one of ratio, macs and latency"):
        package.prune(net, hardware="zcu104", samples=images())


@pytest.mark.slow
def test_compression_verbs_one_after_the_other(tmp_path: Path, command: Command) -> None:
    text = PROFILE.replace("width: 8", "width: 32").replace("epochs: 6", "epochs: 1")
    (tmp_path / "p.yaml").write_text(text)
    source = ("--source", "a.safetensors", "--target", "x86-avx2")
    short = ("--epochs", "1", *source)
    steps = [
        ("train", "p.yaml", "-o", "a.safetensors"),
        ("prune", "p.yaml", "a.safetensors", "--macs", "0.5", *source, "-o", "b.safetensors"),
        ("finetune", "p.yaml", "b.safetensors", *short, "-o", "c.safetensors"),
        ("sparsify", "p.yaml", "c.safetensors", "--pattern", "2:4", *short, "-o", "d.safetensors"),
        ("quantize", "p.yaml", "d.safetensors", "--target", "x86-avx2", "-o", "e.safetensors"),
        ("export", "p.yaml", "e.safetensors", "-o", "e.onnx"),
    ]  # fmt: skip
    for step in steps:
        outcome = command(*step)
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "e.onnx").stat().st_size < (tmp_path / "a.safetensors").stat().st_size / 4
    outcome = command("prune", "p.yaml", "e.safetensors", "--macs", "0.5", *source, "-o", "f.safetensors")
    assert outcome.code == 2
    assert "does not take a quantized_checkpoint" in outcome.err
    outcome = command("prune", "p.yaml", "a.safetensors", "--ratio", "1.5", *source, "-o", "f.safetensors")
    assert outcome.code == 2
    assert "ratio" in outcome.err


@pytest.mark.slow
def test_quantized_checkpoints_are_not_pruned(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE.replace("epochs: 6", "epochs: 1"))
    assert command("train", "p.yaml", "-o", "a.safetensors").code == 0
    outcome = command("quantize", "p.yaml", "a.safetensors", "--weights", "int4", "-o", "b.safetensors",
                      "--target", "x86-avx2")  # fmt: skip
    assert outcome.code == 2
    assert "weights are int4, but x86-avx2 runs int8" in outcome.err
    assert not (tmp_path / "b.safetensors").exists()
    assert command("quantize", "p.yaml", "a.safetensors", "-o", "b.safetensors").code == 0
    outcome = command("prune", "p.yaml", "b.safetensors", "--ratio", "0.5", "-o", "c.safetensors")
    assert outcome.code == 2
    assert "quantized_checkpoint" in outcome.err


def test_from_a_notebook(tmp_path: Path) -> None:
    net = tiny_net()
    twin = package.quantize(net, hardware="generic-cpu", calibration=images())
    with torch.no_grad():
        share = float((twin(images()).argmax(1) == net(images()).argmax(1)).float().mean())
    assert share >= 0.9
    with pytest.raises(ConfigError, match="empty"):
        package.quantize(net, hardware="generic-cpu", calibration=images(0))
    with pytest.raises(ConfigError, match="NaN"):
        package.quantize(net, hardware="generic-cpu", calibration=torch.full((2, 1, 8, 8), float(np.nan)))
