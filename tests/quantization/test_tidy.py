"""Rewrites keep the function and leave every weighted operator plain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from hwopt.config.hardware import shipped
from hwopt.quantization.assign import Role, assign
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, insert
from tests.quantization.nets import Lambda

SCHEME = shipped("generic-cpu").quantization


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.relu(self.a(x)))
        return result


def attention(causal: bool) -> Lambda:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (m.q, m.k, m.v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return y.transpose(1, 2).flatten(2)

    return Lambda(forward, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))


# name: sample shape, network, weights that get a grid
NETS = {
    "same": ((3, 9, 9), nn.Conv2d(3, 8, 3, padding="same"), 1),
    "same, even kernel": ((3, 9, 9), nn.Conv2d(3, 8, 4, padding="same"), 1),
    "same, dilated": ((3, 20), nn.Conv1d(3, 8, 5, padding="same", dilation=2), 1),
    "valid": ((3, 9, 9), nn.Conv2d(3, 8, 3, padding="valid", stride=2), 1),
    "weight norm": ((3, 9, 9), parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), 1),
    "view of a weight": ((6,), Lambda(lambda m, x: x @ m.a.weight.t(), a=nn.Linear(6, 4, bias=False)), 1),
    "tied": ((8,), Tied(), 1),
    "attention": ((6, 8), attention(causal=False), 3),
    "causal attention": ((6, 8), attention(causal=True), 3),
    "multi-head": (
        (6, 8),
        Lambda(
            lambda m, x: m.m(x, x, x, need_weights=False)[0], m=nn.MultiheadAttention(8, 2, batch_first=True)
        ),
        2,
    ),
    "encoder": ((6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4),
    "zero padding": ((3, 9, 9), nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2)), 1),
}


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_every_weight_is_seen(name: str) -> None:
    shape, net, weights = NETS[name]
    torch.manual_seed(0)
    net.eval()
    x = torch.randn(5, *shape)
    graph = to_graph(net, shape)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-5)
    table = assign(FxNet(graph), SCHEME)
    assert len([d for d in table.decisions if d.role is Role.WEIGHT]) == weights
    insert(graph, SCHEME)
    calibrate(graph, [x])
    with torch.no_grad():
        exact, given = net(x), graph(x)
    assert float((exact - given).abs().max()) < 0.05 * float(exact.abs().max())  # a few steps of 1/255


def test_tied_weights_stay_one_parameter_and_learn() -> None:
    graph = to_graph(Tied(), (8,))
    insert(graph, SCHEME)
    calibrate(graph, [torch.randn(32, 8)])
    matrices = [p for n, p in graph.named_parameters() if p.dim() == 2 and "log2" not in n]
    assert len({id(p) for p in matrices}) == 1
    graph(torch.randn(4, 8)).sum().backward()
    assert matrices[0].grad is not None
    assert float(matrices[0].grad.abs().sum()) > 0


def test_recurrent_layers_stay_float_and_the_table_says_so() -> None:
    for layer in (nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)):
        net = Lambda(lambda m, x: m.h(m.r(x)[0][:, -1]), r=layer, h=nn.Linear(8, 4))
        table = assign(FxNet(to_graph(net, (6, 8))), SCHEME)
        left = [d for d in table.decisions if d.scheme is None and d.role is Role.ACTIVATION]
        assert [d.operator for d in left] == [type(layer).__name__]
        assert "no integer form" in left[0].rule


def test_single_frozen_submodules_keep_their_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).train()
    net[1].eval()
    to_graph(net, (4,))
    assert [m.training for m in net] == [True, False, True]


def test_a_mask_of_minus_infinity_stays_finite_behind_softmax() -> None:
    net = attention(causal=True).eval()
    graph = to_graph(net, (6, 8))
    insert(graph, SCHEME)
    calibrate(graph, [torch.randn(16, 6, 8)])
    with torch.no_grad():
        assert math.isfinite(float(graph(torch.randn(4, 6, 8)).sum()))
