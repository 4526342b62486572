"""Which channels must go together, read from the network's graph of ATen operators.

Every value in the graph carries the identities of the channels along one of its axes. Operators that mix
channels (convolutions, products) start new identities; operators that do not (norms, activations,
additions) tie identities to each other. What is tied is one *unit*, and is kept or cut as one; units that
touch the same axes of the same tensors form a *group*. The idea of the dependency graph is Fang et al., CVPR
2023 (DepGraph); here single channels are tied and not layers, so that branches of a concatenation, attention
heads and the positions of a flattened map need no rules of their own. An operator that is not known ties its
inputs to what is fixed: a network is cut less than it could be, and never wrongly.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx, nn

from hwopt.pruning.channel_rules import RULES
from hwopt.pruning.channels import FIXED, Axis, Channels, Ids, Value, plain, shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that are cut one by one, in the order of the channels of ``layer``."""

    layer: str  # the first layer whose outputs they are
    units: Ids
    channels: int  # that one unit is wide where it is narrowest, such as 8 where a unit is a head

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The groups of a network; ``owners[axis][i]`` is the unit that position i belongs to, -1 for none."""

    groups: tuple[Group, ...]
    owners: Mapping[Axis, Ids]
    frozen: Mapping[str, str]  # layer -> why its outputs cannot be cut
    writers: frozenset[Axis] = frozenset()  # axes whose weights make the channels; the others read them
    heads: Mapping[tuple[str, str], Ids] = field(
        default_factory=dict
    )  # (module, attribute) -> units it counts

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The same network with the groups named in ``reasons`` frozen."""
        groups = tuple(g for g in self.groups if g.layer not in reasons)
        return replace(self, groups=groups, frozen={**self.frozen, **reasons})

    def after(self, keep: npt.NDArray[np.bool_]) -> Structure:
        """The network after a cut: the same groups with the units that are left.

        Not read anew: where a single head or a single channel a group is left, another reading could find
        units of another kind.
        """
        owners = {a: ids[(ids < 0) | keep[np.maximum(ids, 0)]] for a, ids in self.owners.items()}
        groups = tuple(replace(g, units=g.units[keep[g.units]]) for g in self.groups)
        heads = {name: units[keep[units]] for name, units in self.heads.items()}
        return replace(self, groups=groups, owners=owners, heads=heads)


def structure_of(graph: fx.GraphModule, module: nn.Module) -> Structure:
    """Groups of ``module``, whose graph (batch norm not folded) is ``graph``."""
    channels = Channels(module)
    stored = set(module.state_dict())
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        values[node] = _visit(channels, graph, node, values, stored)
    return _assemble(channels)


def _visit(
    channels: Channels, graph: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Any], stored: set[str]
) -> Any:
    if node.op == "get_attr":
        target = str(node.target)
        shape = tuple(operator.attrgetter(target)(graph).shape)
        return Value(shape, parameter=target if target in stored else None)
    if node.op == "placeholder":
        return Value(shape_of(node) or ())
    args = [_resolved(a, values) for a in node.args]
    if node.op == "output":
        channels.freeze(args[0], "they are the network's outputs")
        return None
    kwargs = {k: _resolved(v, values) for k, v in node.kwargs.items()}
    if node.target is operator.getitem:
        return args[0][args[1]]
    target_of: Any = node.target
    if not isinstance(target_of, torch._ops.OpOverload):
        return target_of(*args, **kwargs)  # arithmetic on sizes
    name = target_of.overloadpacket._qualified_op_name.removeprefix("aten::")
    if name == "sym_size":
        return args[0].shape[args[1]]
    rule = RULES.get(name)
    if rule is not None:
        return rule(channels, node, args, kwargs)
    for value in args:
        channels.freeze(value, f"the operator {name} is not known to the analysis")
    return plain(node)


def _resolved(arg: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(arg, fx.Node):
        return values[arg]
    return [_resolved(a, values) for a in arg] if isinstance(arg, list | tuple) else arg


def _assemble(channels: Channels) -> Structure:
    """Ties to units, units to groups."""
    empty = np.zeros(0, np.int64)
    a = np.concatenate([empty, *(t[0] for t in channels.ties)])
    b = np.concatenate([empty, *(t[1] for t in channels.ties)])
    links = coo_matrix((np.ones(len(a)), (a, b)), shape=(channels.next, channels.next))
    unit_of = connected_components(links, directed=False)[1].astype(np.int64)
    fixed = int(unit_of[FIXED])
    owners = {axis: np.where(unit_of[ids] == fixed, -1, unit_of[ids]) for axis, ids in channels.axes.items()}
    rank = {name: value.dim() for name, value in channels.module.state_dict().items()}
    touched: dict[int, list[Axis]] = {}  # in the order of the network
    for axis, units in owners.items():
        for unit in dict.fromkeys(units[units >= 0].tolist()):
            touched.setdefault(unit, []).append(axis)
    members: dict[tuple[Axis, ...], list[int]] = {}
    for unit, found in touched.items():
        members.setdefault(tuple(found), []).append(unit)
    groups = []
    for axes, units_of in members.items():
        makers = [name for name, dim in axes if (name, dim) in channels.writers and rank[name] > 1]
        first = (makers or [name for name, _ in axes])[0]
        groups.append(
            Group(
                layer=first.rpartition(".")[0] or first,  # a parameter of the network itself
                units=np.asarray(units_of, np.int64),
                channels=min(int((owners[axis] == units_of[0]).sum()) for axis in axes),
            )
        )
    return Structure(
        groups=_named_apart(groups),
        owners=owners,
        frozen=_frozen(channels, unit_of == fixed, rank),
        heads=_heads(channels, unit_of, fixed),
        writers=frozenset(channels.writers),
    )


def _named_apart(groups: list[Group]) -> tuple[Group, ...]:
    """Channels of one layer can lie in several groups, where slices of them are read apart."""
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.layer] = seen.get(group.layer, 0) + 1
        count = seen[group.layer]
        named.append(group if count == 1 else replace(group, layer=f"{group.layer}#{count}"))
    return tuple(named)


def _frozen(channels: Channels, is_fixed: npt.NDArray[np.bool_], rank: Mapping[str, int]) -> dict[str, str]:
    """Layers whose outputs are fixed, each with the reason that was met first."""
    found: dict[str, str] = {}
    for (name, dim), ids in channels.axes.items():
        if dim == 0 and rank[name] > 1 and is_fixed[ids].all():
            reasons = [channels.reasons[i] for i in ids.tolist() if i in channels.reasons]
            layer = name.rpartition(".")[0]
            found.setdefault(layer, reasons[0] if reasons else "they are tied to channels of fixed number")
    return found


def _heads(channels: Channels, unit_of: Ids, fixed: int) -> dict[tuple[str, str], Ids]:
    """Attributes that count heads, with the units that they count."""
    return {
        (path, name): np.unique(unit_of[ids])
        for path, name, ids in channels.counters
        if not (unit_of[ids] == fixed).any()
    }
