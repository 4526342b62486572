"""What each ATen operator does to the channels of its operands; one function a family, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import fx

from hwopt.pruning.channels import Channels, Ids, Value, plain, shape_of

HEADS: Final = frozenset({"num_heads", "n_heads", "heads", "nhead", "n_head", "num_attention_heads"})


def conv(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Convolutions: plain, grouped, depthwise."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    groups = int(args[6]) if len(args) > 6 else 1
    cout = weight.shape[0]
    if x.axis != 1:
        channels.freeze(x, "a convolution reads them along another axis")
    inputs = x.ids if x.axis == 1 else None
    if groups > 1 and weight.shape[1] == 1 and inputs is not None:  # depthwise
        ids = np.repeat(inputs, cout // groups)
        channels.weigh(weight, 0, ids)
        if bias is not None:
            channels.weigh(bias, 0, ids)
    elif groups > 1:  # the k-th channel of every group goes with the k-th of the others
        if inputs is not None:
            rows = inputs.reshape(groups, -1)
            channels.tie(rows[1:], rows[:1])
            channels.weigh(weight, 1, rows[0], writes=False)
        each = channels.fresh(cout // groups)
        ids = np.tile(each, groups)
        if weight.shape[1] == 1:
            channels.freeze(Value((len(each),), 0, each), "a depthwise convolution of fixed channels")
        channels.weigh(weight, 0, ids)
        if bias is not None:
            channels.weigh(bias, 0, ids)
    else:
        if inputs is not None:
            channels.weigh(weight, 1, inputs, writes=False)
        ids = channels.outputs(weight, 0, bias, cout)
    return Value(shape_of(node) or (), 1, ids)


def conv_transpose(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Transposed convolutions."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if len(args) > 6 and int(args[6]) > 1:
        channels.freeze(x, "a grouped transposed convolution reads them")
        return Value(shape_of(node) or ())
    if x.axis == 1:
        channels.weigh(weight, 0, x.ids, writes=False)
    else:
        channels.freeze(x, "a convolution reads them along another axis")
    return Value(shape_of(node) or (), 1, channels.outputs(weight, 1, bias, weight.shape[1]))


def linear(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Products with stored weights along the last axis."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if x.ids is not None and x.axis == len(x.shape) - 1:
        channels.weigh(weight, 1, x.ids, writes=False)
    shape = shape_of(node) or ()
    if x.ids is not None and x.axis != len(x.shape) - 1:
        channels.freeze(x, "a linear layer reads along another axis")
    return Value(shape, len(shape) - 1, channels.outputs(weight, 0, bias, weight.shape[0]))


def matmul(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Products of two activations, or with a stored matrix."""
    a, b = args[0], args[1]
    shape = shape_of(node) or ()
    if b.parameter is not None and len(b.shape) == 2:
        if a.ids is not None and a.axis == len(a.shape) - 1:
            channels.weigh(b, 0, a.ids, writes=False)
        else:
            channels.freeze(a, "a product reads along another axis")
        return Value(shape, len(shape) - 1, channels.outputs(b, 1, None, b.shape[1]))
    rank = len(shape)
    # Axes of both operands counted in the result; K is where they are contracted.
    places: dict[str, tuple[int, Ids]] = {}
    for side, value, inner in (("a", a, len(a.shape) - 1), ("b", b, len(b.shape) - 2)):
        if value.ids is not None:
            at = -1 if value.axis == inner else value.axis + rank - len(value.shape)
            places[side] = (at, value.ids)
    if len(places) == 2:
        (at_a, ids_a), (at_b, ids_b) = places["a"], places["b"]
        if at_a == at_b and len(ids_a) == len(ids_b):
            channels.tie(ids_a, ids_b)
            return Value(shape) if at_a == -1 else Value(shape, at_a, ids_a)
        channels.freeze([a, b], "a product of two activations mixes them")
        return Value(shape)
    for side, (at, ids) in places.items():
        # Rows of the left or columns of the right operand pass through.
        if at == (rank - 2 if side == "a" else rank - 1):
            return Value(shape, at, ids)
        channels.freeze([a, b], "a product with an activation of fixed size reads them")
    return Value(shape)


def elementwise(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Operators that treat every element alike, and broadcast."""
    operands = [v for a in args for v in (a if isinstance(a, list) else [a]) if isinstance(v, Value)]
    shape = shape_of(node)
    if shape is None:
        channels.freeze(operands, "an operator with several results reads them")
        return plain(node)
    return joined(channels, shape, operands)


def joined(channels: Channels, shape: tuple[int, ...], operands: Sequence[Value]) -> Value:
    """Operands of equal axes, broadcast against each other."""
    rank = len(shape)
    labelled = []
    for value in operands:
        if value.ids is not None and len(value.ids) == 1 and shape[(value.axis or 0) - len(value.shape)] > 1:
            channels.freeze(value, "a single channel is broadcast over the others")
        elif value.ids is not None:
            labelled.append(value)
    if not labelled:
        return Value(shape)
    places = {(v.axis or 0) + rank - len(v.shape) for v in labelled}
    (axis, *others) = sorted(places)
    narrow = any(len(v.ids) != shape[axis] for v in labelled if v.ids is not None)
    if others or narrow:
        channels.freeze(labelled, "they are broadcast along or meet on different axes")
        return Value(shape)
    ids = labelled[0].ids
    assert ids is not None  # noqa: S101 - labelled
    for value in labelled[1:]:
        if value.ids is not None:
            channels.tie(value.ids, ids)
    for value in operands:
        dim = axis - rank + len(value.shape)
        if value.ids is None and dim >= 0 and value.shape[dim] > 1:
            if value.parameter is not None:
                channels.weigh(value, dim, ids)
            else:
                channels.freeze(labelled, "they meet a tensor of fixed size")
    return Value(shape, axis, ids)


def same_axis(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Pools, padding, resizing: the channels stay where they are."""
    x, shape = args[0], shape_of(node)
    shapes = [shape] if shape is not None else [v.shape for v in plain(node)]
    made = []
    moving = len(x.shape) - _touched(str(node.target), args)  # axes from here on are pooled or padded
    for one in shapes:
        kept = (
            x.ids is not None and len(one) == len(x.shape) and one[x.axis] == len(x.ids) and x.axis < moving
        )
        if not kept:
            channels.freeze(x, "an operator changes their number")
        made.append(Value(one, x.axis if kept else None, x.ids if kept else None))
    return made[0] if shape is not None else made


def _touched(name: str, args: list[Any]) -> int:
    """How many of the last axes an operator works along."""
    if "pad" in name:
        amounts = list(args[1])
        while amounts and amounts[-1] == 0:
            amounts.pop()
        return (len(amounts) + 1) // 2
    return next((int(digit) for digit in "123" if f"{digit}d" in name), 0)


def norm(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Batch norm and instance norm: parameters a channel."""
    x = args[0]
    if x.ids is None:
        return Value(shape_of(node) or ())
    for value in args[1:5]:
        if isinstance(value, Value):
            channels.weigh(value, 0, x.ids)
    return Value(shape_of(node) or (), x.axis, x.ids)


def layer_norm(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Layer norm over the last axes."""
    x, normalized = args[0], args[1]
    if x.ids is None:
        return Value(x.shape)
    dim = x.axis - (len(x.shape) - len(normalized))
    if dim >= 0:
        for value in args[2:4]:
            if isinstance(value, Value):
                channels.weigh(value, dim, x.ids)
        if len(args) < 3 or args[2] is None:
            channels.freeze(x, "a layer norm without weights has a fixed size")
    return Value(x.shape, x.axis, x.ids)


def group_norm(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """The k-th channel of every group goes with the k-th of the others."""
    x, groups = args[0], int(args[1])
    if x.ids is None:
        return Value(x.shape)
    rows = x.ids.reshape(groups, -1)
    channels.tie(rows[1:], rows[:1])
    for value in args[2:4]:
        if isinstance(value, Value):
            channels.weigh(value, 0, x.ids)
    return Value(x.shape, x.axis, x.ids)


def prelu(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """A slope a channel."""
    x, slope = args[0], args[1]
    if x.ids is not None and slope.shape[0] > 1:
        channels.weigh(slope, 0, x.ids)
    return Value(x.shape, x.axis, x.ids)


def embedding(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Value:
    """Rows of a table."""
    shape = shape_of(node) or ()
    return Value(shape, len(shape) - 1, channels.outputs(args[0], 1, None, args[0].shape[1]))


def recurrent(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """LSTM and GRU: the hidden size is one for all layers and both directions."""
    x, weights = args[0], args[2]
    with_bias, layers, both = bool(args[3]), int(args[4]), bool(args[7])
    each = 4 if with_bias else 2
    hidden = weights[1].shape[1]
    gates = weights[1].shape[0] // hidden
    found = plain(node)
    if len(weights) != each * layers * (2 if both else 1):  # a projection comes as a fifth weight
        channels.freeze([x], "a recurrent layer with projections reads them")
        return found
    ids = channels.fresh(hidden)
    inputs = x.ids if x.axis == len(x.shape) - 1 else None
    if inputs is None:
        channels.freeze(x, "a recurrent layer reads along another axis")
    for index in range(0, len(weights), each):
        one = weights[index : index + each]
        if inputs is not None:
            channels.weigh(one[0], 1, inputs, writes=False)
        channels.weigh(one[1], 1, ids, writes=False)
        for part in one:
            channels.weigh(part, 0, np.tile(ids, gates))
        if (index // each + 1) % (2 if both else 1) == 0:
            inputs = np.tile(ids, 2 if both else 1)
    out = np.tile(ids, 2 if both else 1)
    found[0] = Value(found[0].shape, len(found[0].shape) - 1, out)
    for i in range(1, len(found)):
        found[i] = Value(found[i].shape, len(found[i].shape) - 1, ids)
    return found


def reduce(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Means and sums."""
    x, shape = args[0], shape_of(node)
    if shape is None or x.ids is None:
        channels.freeze(x, "a reduction with several results reads them")
        return plain(node)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    listed = range(len(x.shape)) if dims is None else dims if isinstance(dims, list) else [dims]
    gone = {int(d) % len(x.shape) for d in listed}
    if x.axis in gone:
        return Value(shape)
    keeps = len(shape) == len(x.shape)
    axis = x.axis if keeps else x.axis - sum(d < x.axis for d in gone)
    return Value(shape, axis, x.ids)


def concat(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Channels side by side."""
    parts, shape = args[0], shape_of(node) or ()
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
    if any(p.ids is not None and p.axis != dim for p in parts):
        if any(p.ids is not None and p.axis == dim for p in parts):
            channels.freeze(parts, "a concatenation joins them on different axes")
            return Value(shape)
        open_parts = [
            Value((*p.shape[:dim], 1, *p.shape[dim + 1 :]), p.axis, p.ids, p.parameter) for p in parts
        ]
        tied = joined(channels, (*shape[:dim], 1, *shape[dim + 1 :]), open_parts)
        return Value(shape, tied.axis, tied.ids)
    ids = [np.zeros(p.shape[dim], np.int64) if p.ids is None else p.ids for p in parts]
    return Value(shape, dim, np.concatenate(ids))


def pieces(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Equal pieces: the k-th channel of each goes with the k-th of the others."""
    x, found = args[0], plain(node)
    if x.ids is None:
        return found
    name = str(node.target)
    dim = int((args[1] if len(args) > 1 else 0) if "unbind" in name else args[2] if len(args) > 2 else 0)
    dim %= len(x.shape)
    unbound = "unbind" in name
    if dim != x.axis:
        axis = x.axis - 1 if unbound and dim < x.axis else x.axis
        return [Value(v.shape, axis, x.ids) for v in found]
    sizes = {v.shape[dim] for v in found} if not unbound else {0}
    if unbound or len(sizes) != 1:
        channels.freeze(x, "they are split into unequal or single pieces")
        return found
    rows = x.ids.reshape(len(found), -1)
    channels.tie(rows[1:], rows[:1])
    return [Value(v.shape, dim, row) for v, row in zip(found, rows, strict=True)]


def moved(channels: Channels, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A change of view: done to the identities themselves."""
    x, shape = args[0], shape_of(node)
    if x.ids is None and x.parameter is not None and shape is not None and len(shape) == len(x.shape):
        grown = [d for d, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if a != b]
        if "expand" in str(node.target) and all(x.shape[d] == 1 for d in grown):
            return Value(shape, parameter=x.parameter)  # such as a class token for every sample
    if x.ids is None or shape is None:
        return plain(node)
    target: Any = node.target
    labels = target(torch.from_numpy(np.array(x.labels, order="C")), *args[1:], **kwargs).numpy()
    if labels.size != x.labels.size and len(np.unique(labels)) != len(np.unique(x.labels)):
        channels.freeze(x, "single channels are picked by number")
        return Value(shape)
    varying = [d for d in range(labels.ndim) if (labels != labels.take([0], d)).any()]
    if not varying:
        channels.freeze(x, "a change of view hides them")
        return Value(shape)
    axis, counter = unit_axis(channels, node, labels.shape, varying)
    flat = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    if len(varying) > 1:
        channels.tie(flat[:, 1:], flat[:, :1])
    ids = flat[:, 0].copy()
    if counter is not None:
        channels.counters.append((*counter, ids))
    return Value(shape, axis, ids)


def unit_axis(
    channels: Channels, node: fx.Node, shape: Sequence[int], varying: list[int]
) -> tuple[int, tuple[str, str] | None]:
    """Which of several axes is cut: attention heads where a module counts them, else the last.

    Returns:
        the axis, and (module, attribute) that counts its heads.
    """
    if len(varying) > 1:
        for path in reversed([p for p, _ in (node.meta.get("nn_module_stack") or {}).values()]):
            path = path.removeprefix("L['self']").lstrip(".")
            try:
                owner = channels.module.get_submodule(path)
            except AttributeError:
                continue
            for name in sorted(HEADS & vars(owner).keys()):
                found = [d for d in varying if shape[d] == vars(owner)[name]]
                if found and isinstance(vars(owner)[name], int):
                    return found[-1], (path, name)
    return varying[-1], None


Rule = Callable[[Channels, fx.Node, list[Any], dict[str, Any]], Any]


def _table(**rules: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.values() for name in names.split()}


RULES: Final[dict[str, Rule]] = _table(
    conv=(conv, "conv1d conv2d conv3d"),
    transposed=(conv_transpose, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    linear=(linear, "linear"),
    matmul=(matmul, "matmul bmm mm"),
    elementwise=(
        elementwise,
        "add sub mul div pow maximum minimum where relu relu6 hardtanh clamp clamp_min clamp_max sigmoid "
        "tanh silu gelu elu selu celu leaky_relu hardswish hardsigmoid mish softplus exp log sqrt rsqrt "
        "abs neg square erf softmax log_softmax dropout clone contiguous detach alias to _to_copy cumsum",
    ),
    same=(
        same_axis,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d pad "
        "max_pool2d_with_indices constant_pad_nd upsample_nearest1d upsample_nearest2d upsample_bilinear2d "
        "upsample_bicubic2d",
    ),
    norm=(norm, "batch_norm instance_norm"),
    layer_norm=(layer_norm, "layer_norm"),
    group_norm=(group_norm, "group_norm"),
    prelu=(prelu, "prelu"),
    embedding=(embedding, "embedding"),
    recurrent=(recurrent, "lstm gru"),
    reduce=(reduce, "mean sum amax amin"),
    concat=(concat, "cat"),
    pieces=(pieces, "chunk split split_with_sizes unbind"),
    moved=(
        moved,
        "view reshape flatten unflatten permute transpose t squeeze unsqueeze select slice expand movedim "
        "pixel_shuffle flip _unsafe_view",
    ),
)
