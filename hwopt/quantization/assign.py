"""Decide before acting: which tensor gets which grid, and the rule that says so.

Pure: reads the network, changes nothing, and returns a table that can be printed and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hwopt.core.canonical import JSON
from hwopt.core.hardware import LayerRule, Mode, QuantizationScheme, TensorScheme
from hwopt.quantization.eligible import is_depthwise, overrides, worth_it
from hwopt.quantization.net import TRANSPARENT, WEIGHTED, Net, Op, makers, readers

_INT32 = TensorScheme(dtype="int32", symmetric=True, granularity="channel")
# Operators that carry weights but have kernels of their own, if any.
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


class Role(StrEnum):
    """What a tensor is to the operator that asked for its grid."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One tensor and its grid; ``scheme`` None leaves it in floating point."""

    tensor: str
    role: Role
    operator: str  # ONNX type of the operator concerned
    node: str  # that operator's name
    scheme: TensorScheme | None
    rule: str  # why
    axis: int | None = None
    in_axis: int | None = None  # along which a blocked weight is cut
    ceiling: float | None = None  # greatest value the tensor can hold
    shares: str | None = None  # the tensor whose grid this one uses
    dynamic: bool = False  # the range is taken from each input as it runs

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the table artifact and ``--explain``."""
        scheme = self.scheme
        granularity = None
        if scheme is not None:
            granularity = (
                f"block of {scheme.block}"
                if scheme.block
                else ("channel" if self.axis is not None else "tensor")
            )
        return {
            "tensor": self.tensor,
            "role": self.role.value,
            "operator": self.operator,
            "node": self.node,
            "dtype": None if scheme is None else scheme.dtype,
            "codes": None if scheme is None else list(scheme.codes),
            "granularity": granularity,
            "dynamic": self.dynamic,
            "shares": self.shares,
            "rule": self.rule,
        }


@dataclass(slots=True)
class Assignment:
    """All decisions; weights and biases of each operator first, then activations in order of execution."""

    decisions: list[Decision] = field(default_factory=list)
    # tensor -> names of the operators that read the quantized value, where not all do
    readers: dict[str, set[str]] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)  # operators that run on quantized values

    def integer_nodes(self) -> list[str]:
        """Weighted operators that the table wants in integer."""
        return [
            d.node
            for d in self.decisions
            if d.role is Role.WEIGHT and d.scheme is not None and d.operator in WEIGHTED
        ]


def assign(net: Net, scheme: QuantizationScheme, rules: Sequence[LayerRule] = ()) -> Assignment:
    """The grid of every tensor under ``scheme``; the first of ``rules`` that matches a layer overrides it.

    Raises:
        ConfigError: a rule that matches no layer.
    """
    override = overrides(net, rules)
    kept = {name for name, rule in override.items() if rule.keep_float}
    operators = set(scheme.operators)
    if scheme.mode is not Mode.STATIC:
        operators = {"Gemm", "MatMul", "LSTM" if scheme.mode is Mode.DYNAMIC else "Gather"}
    chosen = [op for op in net.ops if op.kind in operators and op.name not in kept]
    if scheme.depthwise == "float":
        chosen = [op for op in chosen if not is_depthwise(net, op)]
    if scheme.mode is Mode.STATIC:
        chosen = worth_it(net, chosen)
    else:
        chosen = [op for op in chosen if op.weight is not None]
    result = Assignment(chosen=[op.name for op in chosen])
    _weights(net, chosen, scheme, override, result)
    if scheme.mode is Mode.DYNAMIC:
        _dynamic_inputs(chosen, scheme, result)
    elif scheme.mode is Mode.STATIC and scheme.placement == "inputs":
        _activations_at_inputs(net, chosen, scheme, override, result)
    elif scheme.mode is Mode.STATIC:
        _activations_at_outputs(net, chosen, scheme, override, result)
    _left_in_float(net, chosen, scheme, override, result)
    return result


def _weights(
    net: Net,
    chosen: list[Op],
    scheme: QuantizationScheme,
    override: dict[str, LayerRule],
    result: Assignment,
) -> None:
    seen: set[str] = set()
    for op in chosen:
        if op.kind is None or op.weight is None:
            continue
        rule = override.get(op.name)
        weights = (
            scheme.weights
            if rule is None or rule.weights is None
            else scheme.weights.with_dtype(rule.weights)
        )
        if op.weight not in seen:  # a layer that is called twice has one weight, and one grid for it
            seen.add(op.weight)
            why = f"asked for by the rule for {rule.layers}" if rule and rule.weights else scheme.why
            if weights.block is not None and not _cuts_evenly(net, op, weights.block):
                weights = weights.model_copy(update={"block": None})
                why += "; one scale a channel, for its inputs do not divide into blocks"
            result.decisions.append(
                Decision(
                    tensor=op.weight,
                    role=Role.WEIGHT,
                    operator=op.kind,
                    node=op.name,
                    scheme=weights,
                    axis=op.axis if weights.granularity == "channel" else None,
                    in_axis=op.in_axis,
                    rule=f"{weights.dtype} {list(weights.codes)}: {why}",
                )
            )
        if op.bias is not None and op.kind not in _RECURRENT:
            in_integer = scheme.bias == "int32" and scheme.mode is Mode.STATIC
            result.decisions.append(
                Decision(
                    tensor=op.bias,
                    role=Role.BIAS,
                    operator=op.kind,
                    node=op.name,
                    scheme=_INT32 if in_integer else None,
                    rule="int32 at input scale × weight scale, added in the accumulator"
                    if in_integer
                    else "added in floating point",
                )
            )


def _cuts_evenly(net: Net, op: Op, block: int) -> bool:
    values = net.constant(op.weight) if op.weight else None
    if values is None or op.in_axis is None or op.kind == "Gather":
        return False
    return values.ndim == 2 and values.shape[op.in_axis] % block == 0


def _fused_activation(op: Op, readers_of: dict[str, list[Op]], outputs: frozenset[str]) -> Op | None:
    """The ReLU or ReLU6 that the runtime merges into ``op``, if it is its only reader."""
    users = readers_of.get(op.output, [])
    if len(users) != 1 or op.output in outputs:
        return None
    user = users[0]
    if user.kind == "Relu" or (user.kind == "Clip" and user.bounds is not None and user.bounds[0] == 0.0):
        return user
    return None


def _ceiling(op: Op | None) -> float | None:
    if op is not None and op.kind == "Clip" and op.bounds is not None and op.bounds[0] == 0.0:
        return op.bounds[1]
    return None


_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax"})
_KEEPS_SIGN = TRANSPARENT | {"GlobalAveragePool", "AveragePool", "Add", "Concat"}


def _never_negative(net: Net) -> set[str]:
    """Tensors that cannot hold a value below zero, by what makes them."""
    found: set[str] = set()
    for op in net.ops:
        if (
            op.kind in _NOT_NEGATIVE
            or (op.kind == "Clip" and op.bounds is not None and op.bounds[0] >= 0)
            or (op.kind in _KEEPS_SIGN and op.inputs and found.issuperset(op.inputs))
        ):
            found.add(op.output)
    return found


def _absorbs_relu(activations: TensorScheme) -> bool:
    """Whether a grid can begin at zero, so that the runtime may drop the ReLU in front of it."""
    return activations.nonnegative is not None or not (activations.symmetric and activations.type.signed)


def _activations_at_outputs(
    net: Net,
    chosen: list[Op],
    scheme: QuantizationScheme,
    override: dict[str, LayerRule],
    result: Assignment,
) -> None:
    """A grid on every tensor that enters or leaves a chosen operator."""
    read_by, made_by = readers(net), makers(net)
    never_negative = _never_negative(net)
    merges = _absorbs_relu(scheme.activations)
    types: dict[str, str] = {}  # tensor -> type that a rule asks for
    wanted: dict[str, tuple[str, str]] = {}  # tensor -> (operator, rule)
    for op in chosen:
        kind = str(op.kind)
        for source in op.inputs:
            wanted.setdefault(source, (kind, f"read by {kind}, which runs in integer"))
        rule = override.get(op.name)
        if rule is not None and rule.activations is not None:
            types |= dict.fromkeys(op.inputs, rule.activations)
        merged = _fused_activation(op, read_by, net.outputs) if merges else None
        end = merged or op
        if end.output in net.outputs and kind in {"Gemm", "MatMul"}:
            continue  # the result of the network: these operators hand out floats for free
        text = f"written by {kind}, which needs its output quantized to run in integer"
        wanted[end.output] = (kind, text if end is op else text + "; the activation is merged into the grid")
    transparent = TRANSPARENT if merges else TRANSPARENT | {"Relu"}
    # A transparent operator has one grid on both sides, so its source is wanted as well.
    shared: dict[str, str] = {}
    for op in reversed(net.ops):
        if op.output in wanted and op.kind in transparent and op.inputs:
            source = op.inputs[0]
            shared[op.output] = source
            wanted.setdefault(source, (wanted[op.output][0], f"passed on unchanged to {op.name}"))
    names = [name for name in _in_order(net) if name in wanted]
    roots = {name: _root(name, shared) for name in names}
    for name in names:
        if name in types:
            types.setdefault(roots[name], types[name])
    for name in names:
        kind, text = wanted[name]
        root = roots[name]
        maker = made_by.get(root)
        activations = scheme.activations
        if root in types:
            activations = activations.with_dtype(types[root])
            text += f"; {types[root]} by rule"
        activations = _sign(activations, root, never_negative)
        result.decisions.append(
            Decision(
                tensor=name,
                role=Role.ACTIVATION,
                operator=kind,
                node=made_by[name].name if name in made_by else name,
                scheme=activations,
                ceiling=None if activations.type.signed else _ceiling(maker),
                shares=None if root == name else root,
                rule=text if root == name else f"same values as {root}, so the same grid",
            )
        )


def _root(name: str, shared: dict[str, str]) -> str:
    while name in shared:
        name = shared[name]
    return name


def _in_order(net: Net) -> list[str]:
    """Every activation: those that come from outside first."""
    made = {op.output for op in net.ops}
    outside = dict.fromkeys(name for op in net.ops for name in op.inputs if name not in made)
    return [*outside, *(op.output for op in net.ops)]


def _sign(activations: TensorScheme, tensor: str, never_negative: set[str]) -> TensorScheme:
    """Devices with a type for non-negative values use it where that is certain."""
    if activations.nonnegative is not None and tensor in never_negative:
        return activations.model_copy(update={"dtype": activations.nonnegative, "range": None})
    return activations


def _activations_at_inputs(
    net: Net,
    chosen: list[Op],
    scheme: QuantizationScheme,
    override: dict[str, LayerRule],
    result: Assignment,
) -> None:
    """A grid only where a weighted operator reads."""
    read_by, never_negative = readers(net), _never_negative(net)
    weighted = {op.name for op in chosen if op.kind in WEIGHTED}
    for name in _in_order(net):
        users = [op for op in read_by.get(name, []) if op.name in weighted]
        if not users:
            continue
        kind = str(users[0].kind)
        asked = [r.activations for r in (override.get(op.name) for op in users) if r and r.activations]
        activations = scheme.activations.with_dtype(asked[0]) if asked else scheme.activations
        result.readers[name] = {op.name for op in users}
        result.decisions.append(
            Decision(
                tensor=name,
                role=Role.ACTIVATION,
                operator=kind,
                node=users[0].name,
                scheme=_sign(activations, name, never_negative),
                rule=f"read by {kind}; the runtime quantizes inputs of weighted operators only",
            )
        )


def _dynamic_inputs(chosen: list[Op], scheme: QuantizationScheme, result: Assignment) -> None:
    """The activation of every chosen product is quantized with the range that it has just then."""
    grid = TensorScheme(dtype="uint8", symmetric=False, granularity="tensor")
    for op in chosen:
        if op.kind in _RECURRENT:
            continue  # the runtime's operator quantizes inside
        name = op.inputs[0]
        known = name in result.readers
        result.readers.setdefault(name, set()).add(op.name)
        if not known:
            result.decisions.append(
                Decision(
                    tensor=name,
                    role=Role.ACTIVATION,
                    operator=str(op.kind),
                    node=op.name,
                    scheme=grid,
                    dynamic=True,
                    rule=f"read by {op.kind}; its range is taken anew from each input",
                )
            )


def _left_in_float(
    net: Net,
    chosen: list[Op],
    scheme: QuantizationScheme,
    override: dict[str, LayerRule],
    result: Assignment,
) -> None:
    """Everything that carries weights or could have run in integer, and does not, with the reason."""
    taken = {op.name for op in chosen}
    known = WEIGHTED | _RECURRENT | set(scheme.operators)
    for op in net.ops:
        rule = override.get(op.name)
        if op.name in taken or not (op.kind in known or op.weight or op.parameters):
            continue
        if rule is not None and rule.keep_float:
            why = f"kept in float by the rule for {rule.layers}"
        elif op.kind is None:
            why = f"{op.type} has no integer form that this tool knows"
        elif scheme.mode is not Mode.STATIC:
            if op.weight is None and op.kind not in _RECURRENT:
                continue  # nothing to store in fewer bits
            why = f"{scheme.mode.value} quantization serves matrix products; {op.kind} has no fast kernel"
        elif op.kind in WEIGHTED and op.kind in scheme.operators:
            why = "the runtimes of this scheme have no fast integer kernel for depthwise convolutions"
        elif op.kind in scheme.operators:
            why = "its neighbours are in float, so integers would cost range and gain nothing"
        else:
            why = f"{op.kind} is not among the operators that this device runs in integer"
        result.decisions.append(
            Decision(
                tensor=op.output, role=Role.ACTIVATION, operator=op.type, node=op.name, scheme=None, rule=why
            )
        )
