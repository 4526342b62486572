"""How much each unit matters to the network: one number a unit, comparable within a group.

Scores of all tensors that a unit touches are added up, each tensor normalized by its mean, so that wide
layers do not drown narrow ones. Gradient methods estimate the change of the loss and are comparable between
groups as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.errors import ConfigError
from hwopt.pruning.channels import Ids
from hwopt.pruning.structure import Group, Structure

Vector = npt.NDArray[np.float64]
Scores = dict[str, Vector]  # by group, one a unit
Batch = tuple[Tensor, Tensor]  # samples and labels


def importance(
    method: str, module: nn.Module, structure: Structure, batches: Sequence[Batch] = (), *, seed: int = 0
) -> Scores:
    """Scores of all units of all groups.

    Args:
        method: ``l1``, ``l2``: norms of weights (Li et al., ICLR 2017). ``batch_norm``: size of the scale
            (Liu et al., ICCV 2017, network slimming). ``taylor``: first-order change of the loss (Molchanov
            et al., CVPR 2019, equation 8). ``fisher``: its mean square over batches (Theis et al., 2018,
            equation 7). ``hessian``: second-order change by the diagonal of the Hessian, estimated by
            Hutchinson's method (LeCun et al., 1989, equation 5; Yao et al., AAAI 2021, equation 7).
        batches: samples with labels; for the last three.
    Raises:
        ConfigError: ``batch_norm`` for a group that has none, or no batches for a gradient method.
    """
    state = dict(module.named_parameters())
    if method in {"l1", "l2"}:
        power = 1 if method == "l1" else 2
        return {g.layer: _norms(g, structure, state, power) for g in structure.groups}
    if method == "batch_norm":
        return {g.layer: _scales(g, structure, state, _batch_norms(module)) for g in structure.groups}
    if not batches:
        raise ConfigError(f"importance {method!r} needs labelled samples", fix="give labels, or choose l2")
    return {
        "taylor": lambda: _by_gradients(module, structure, batches, square=False),
        "fisher": lambda: _by_gradients(module, structure, batches, square=True),
        "hessian": lambda: _hessian(module, structure, batches, seed),
    }[method]()


def _batch_norms(module: nn.Module) -> set[str]:
    return {n for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def _rows(tensor: Tensor, dim: int, reduce: Callable[[Tensor], Tensor]) -> Vector:
    """One number a position of ``dim``."""
    rows = tensor.detach().transpose(0, dim).reshape(tensor.shape[dim], -1)
    values: Vector = reduce(rows).double().numpy()
    return values


def _by_unit(group: Group, ids: Ids, values: Vector) -> Vector:
    """Sums over the positions of each unit."""
    total = np.zeros(int(max(ids.max(), group.units.max())) + 1)
    np.add.at(total, ids[ids >= 0], values[ids >= 0])
    return total[group.units]


def _touched(
    group: Group, structure: Structure, state: Mapping[str, Tensor]
) -> Iterable[tuple[str, int, Ids]]:
    for (name, dim), ids in structure.owners.items():
        if name in state and np.isin(ids, group.units).any():
            yield name, dim, ids


def _norms(group: Group, structure: Structure, state: Mapping[str, Tensor], power: int) -> Vector:
    total = np.zeros(group.width)
    for name, dim, ids in _touched(group, structure, state):
        if state[name].dim() < 2:
            continue
        sums = _by_unit(group, ids, _rows(state[name], dim, lambda rows: rows.abs().pow(power).sum(1)))
        norms = sums ** (1 / power)
        total += norms / max(norms.mean(), 1e-30)
    return total


def _scales(group: Group, structure: Structure, state: Mapping[str, Tensor], norms: set[str]) -> Vector:
    total, found = np.zeros(group.width), False
    for name, dim, ids in _touched(group, structure, state):
        if name.rpartition(".")[0] in norms and name.endswith("weight"):
            found = True
            total += _by_unit(group, ids, _rows(state[name], dim, lambda rows: rows.abs().sum(1)))
    if not found:
        raise ConfigError(
            f"no batch norm scales the channels of {group.layer}", fix="choose importance l2, or taylor"
        )
    return total


def _by_gradients(
    module: nn.Module, structure: Structure, batches: Sequence[Batch], *, square: bool
) -> Scores:
    """Change of the loss when a unit's rows become zero: squared a batch, or of the mean gradient."""
    signed = {g.layer: np.zeros(g.width) for g in structure.groups}
    squared = {g.layer: np.zeros(g.width) for g in structure.groups}
    parameters = dict(module.named_parameters())
    norms = _batch_norms(module)
    module.train(False)
    for x, y in batches:
        loss = functional.cross_entropy(module(x), y)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = dict(zip(parameters, found, strict=True))
        products = {n: p.detach() * gradients[n] for n, p in parameters.items() if gradients[n] is not None}
        for group in structure.groups:
            change = np.zeros(group.width)
            # What the unit writes, after its norm where it has one: silencing that silences the unit.
            written = [t for t in _touched(group, structure, products) if t[:2] in structure.writers]
            normed = [t for t in written if t[0].rpartition(".")[0] in norms]
            for name, dim, ids in normed or written:
                change += _by_unit(group, ids, _rows(products[name], dim, lambda rows: rows.sum(1)))
            signed[group.layer] += change / len(batches)
            squared[group.layer] += change**2 / len(batches)
    return squared if square else {layer: value**2 for layer, value in signed.items()}


def _hessian(module: nn.Module, structure: Structure, batches: Sequence[Batch], seed: int) -> Scores:
    parameters = dict(module.named_parameters())
    diagonal = {name: torch.zeros_like(p) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    module.train(False)
    for x, y in batches:
        loss = functional.cross_entropy(module(x), y)
        first = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
        signs = [torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1 for p in parameters.values()]
        pairs = [(g * s).sum() for g, s in zip(first, signs, strict=True) if g is not None]
        second = torch.autograd.grad(torch.stack(pairs).sum(), list(parameters.values()), allow_unused=True)
        for name, sign, product in zip(parameters, signs, second, strict=True):
            if product is not None:
                diagonal[name] += sign * product / len(batches)
    change = {n: 0.5 * diagonal[n].clamp_min(0) * p.detach() ** 2 for n, p in parameters.items()}
    scores = {}
    for group in structure.groups:
        scores[group.layer] = np.zeros(group.width)
        for name, dim, ids in _touched(group, structure, change):
            if (name, dim) in structure.writers:
                rows = _rows(change[name], dim, lambda rows: rows.sum(1))
                scores[group.layer] += _by_unit(group, ids, rows)
    return scores
