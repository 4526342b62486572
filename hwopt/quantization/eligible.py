"""Which operators may run in integer: the user's rules, and what is worth it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hwopt.core.hardware import LayerRule
from hwopt.errors import ConfigError
from hwopt.quantization.net import TRANSPARENT, WEIGHTED, Net, Op, makers, readers


def is_depthwise(net: Net, op: Op) -> bool:
    """Whether a convolution has a kernel of its own for every channel."""
    values = net.constant(op.weight) if op.groups > 1 and op.weight else None
    return values is not None and values.shape[1] == 1


_PASSED = TRANSPARENT | {"Relu", "Clip"}


def worth_it(net: Net, chosen: list[Op]) -> list[Op]:
    """Weighted operators, and of the others those that stand between integer operators.

    An addition or a product inside float arithmetic (layer norm, a magnitude, a gate) gains nothing from
    eight bits and loses range: each of its inputs must be there in integer anyway, and somebody must want its
    output so.
    """
    read_by, made_by = readers(net), makers(net)
    taken = {op.name for op in chosen}
    weighted = {op.name for op in chosen if op.kind in WEIGHTED}

    def comes_in_integer(tensor: str) -> bool:
        while True:
            if any(op.name in weighted for op in read_by.get(tensor, [])):
                return True
            maker = made_by.get(tensor)
            if maker is None:
                return False
            if maker.name in taken:
                return True
            if maker.kind not in _PASSED or not maker.inputs:
                return False
            tensor = maker.inputs[0]

    def is_wanted(tensor: str) -> bool:
        users = read_by.get(tensor, [])
        return any(op.name in taken or (op.kind in _PASSED and is_wanted(op.output)) for op in users)

    while True:
        lost = {
            op.name
            for op in chosen
            if op.name in taken
            and op.kind not in WEIGHTED
            and not (all(comes_in_integer(name) for name in op.inputs) and is_wanted(op.output))
        }
        if not lost:
            return [op for op in chosen if op.name in taken]
        taken -= lost


def overrides(net: Net, rules: Sequence[LayerRule]) -> dict[str, LayerRule]:
    """Operator name to the first rule that matches the name of its weight, or its own."""
    found: dict[str, LayerRule] = {}
    used: set[int] = set()
    for op in net.ops:
        for index, rule in enumerate(rules):
            if any(re.fullmatch(rule.layers, name) for name in (op.weight, op.name) if name) and (
                not rule.operators or op.kind in rule.operators
            ):
                used.add(index)
                found.setdefault(op.name, rule)
                break
    for index, rule in enumerate(rules):
        if index not in used:
            layers = [op.weight for op in net.ops if op.weight]
            raise ConfigError(
                f"the rule for layers {rule.layers!r} matches no layer that an earlier rule does not take",
                fix=f"the layers are {', '.join(layers[:12])}{' …' if len(layers) > 12 else ''}",
            )
    return found
