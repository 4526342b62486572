"""Rewrites of a traced graph for inference, so that every weighted operator is plain.

Dropout goes, batch norm is folded into the layer before it, a mean over the image becomes the pooling
operator that integer runtimes know. And tracing leaves shorthand behind that no rule could see through:
``padding="same"``, weights computed from other parameters (weight norm, transposed views), one parameter
under two names, fused attention.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from hwopt.quantization.nodes import CONVOLUTIONS, TRANSPOSED, add_constant, argument, constant, set_constant

_aten = torch.ops.aten

_DROPOUT: Final = {_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default}
_RELU6: Final = {_aten.relu6.default, _aten.relu6_.default}
_IN_PLACE: Final = {
    _aten.relu_.default: _aten.relu.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.silu_.default: _aten.silu.default,
}
_PADDED: Final[dict[Any, Any]] = {
    _aten.conv1d.padding: _aten.conv1d.default,
    _aten.conv2d.padding: _aten.conv2d.default,
}


def merge_tied_weights(graph_module: fx.GraphModule) -> None:
    """One node a parameter, so that whoever changes it sees all its readers."""
    first: dict[str, fx.Node] = {}
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr":
            kept = first.setdefault(str(node.target), node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                graph_module.graph.erase_node(node)


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Values that follow from parameters alone become parameters of their own.

    A parameter that is read directly and through a view is two parameters from then on; training no longer
    ties them.
    """
    interpreter = fx.Interpreter(graph_module)
    for node in list(graph_module.graph.nodes):
        sources = node.all_input_nodes
        value = node.meta.get("val")
        if (
            node.op != "call_function"
            or not sources
            or not isinstance(value, Tensor)
            or not value.is_floating_point()
            or any(source.op != "get_attr" for source in sources)
        ):
            continue
        args = fx.map_arg(node.args, lambda n: constant(graph_module, n))
        kwargs = fx.map_arg(node.kwargs, lambda n: constant(graph_module, n))
        with torch.no_grad():
            result = interpreter.call_function(node.target, args, kwargs)
        trainable = all(isinstance(constant(graph_module, source), nn.Parameter) for source in sources)
        value_now = result.detach().clone().contiguous()
        new = add_constant(graph_module, f"{node.name}_folded", value_now, node, trainable=trainable)
        new.meta["val"] = result
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)


def own_constants(graph_module: fx.GraphModule) -> None:
    """Layers that share a bias but no weight, or a weight along two axes, get copies of their own.

    Whoever scales, folds or corrects one layer would change the other. Training no longer ties the copies.
    """
    for node in list(graph_module.graph.nodes):
        if node.op != "get_attr":
            continue
        groups: dict[object, list[tuple[fx.Node, int]]] = {}
        for user in list(node.users):
            for slot, given in enumerate(user.args):
                if given is node and user.op == "call_function":
                    groups.setdefault(_role(user, slot), []).append((user, slot))
        for group in list(groups.values())[1:]:
            value = constant(graph_module, node)
            if value is None:
                continue
            copy = add_constant(
                graph_module,
                f"{node.name}_copy",
                value.detach().clone(),
                group[0][0],
                trainable=isinstance(value, nn.Parameter),
            )
            copy.meta["val"] = node.meta.get("val")
            # In front of its first reader in the order of execution.
            order = {n: i for i, n in enumerate(graph_module.graph.nodes)}
            first = min((user for user, _ in group), key=lambda n: order[n])
            first.prepend(copy)
            for user, slot in group:
                user.update_arg(slot, copy)


def _role(user: fx.Node, slot: int) -> object:
    """Equal for two readers that may share a constant."""
    layer = user.target in CONVOLUTIONS or user.target is _aten.linear.default
    if layer and slot == 1:
        return 1 if user.target in TRANSPOSED else 0
    if layer and slot == 2:
        return ("bias of", user.args[1])
    if user.target in {_aten.matmul.default, _aten.mm.default} and slot == 1:
        return -1
    if user.target is _aten.layer_norm.default:
        return ("layer norm", user)
    return "elsewhere"


def explicit_padding(graph_module: fx.GraphModule) -> None:
    """``padding="same"`` and ``"valid"`` as numbers; unequal sides as a padding operator in front."""
    graph = graph_module.graph
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _PADDED:
            continue
        weight = node.args[1].meta["val"]
        kernel = weight.shape[2:]
        stride, word, dilation, groups = (argument(node, i) for i in (3, 4, 5, 6))
        dilation = list(dilation or [1] * len(kernel))
        total = [d * (k - 1) if word == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
            with graph.inserting_before(node):
                padded = graph.call_function(_aten.constant_pad_nd.default, (node.args[0], sides, 0.0))
            source, padding = padded, [0] * len(kernel)
        else:
            source, padding = node.args[0], [t // 2 for t in total]
        node.target = _PADDED[node.target]
        bias = argument(node, 2)
        node.args = (
            source,
            node.args[1],
            bias,
            list(stride or [1] * len(kernel)),
            padding,
            dilation,
            groups or 1,
        )


def open_attention(graph_module: fx.GraphModule) -> None:
    """Fused attention as the two products and the softmax that it consists of.

    Vaswani et al., NeurIPS 2017, equation 1. Dropout is off; a causal mask needs fixed lengths, and grouped
    queries stay fused.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not _aten.scaled_dot_product_attention.default:
            continue
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        query, key, value = (given[name] for name in names[:3])
        q, k, out = query.meta["val"], key.meta["val"], node.meta["val"]
        rows, columns = q.shape[-2], k.shape[-2]
        mask = given.get("attn_mask")
        causal = bool(given.get("is_causal"))
        boolean = mask is not None and not mask.meta["val"].is_floating_point()
        fixed = isinstance(rows, int) and isinstance(columns, int)
        if given.get("enable_gqa") or boolean or (causal and not fixed):
            continue
        scale = given.get("scale") or float(q.shape[-1]) ** -0.5
        with graph.inserting_before(node):
            turned = graph.call_function(_aten.transpose.int, (key, -2, -1))
            scores = graph.call_function(_aten.matmul.default, (query, turned))
            scaled = graph.call_function(_aten.mul.Tensor, (scores, scale))
        turned.meta["val"] = k.transpose(-2, -1)
        scores.meta["val"] = scaled.meta["val"] = q @ k.transpose(-2, -1)
        if causal:
            above = torch.full((rows, columns), float("-inf")).triu(1)
            mask = add_constant(graph_module, f"{node.name}_mask", above, node, trainable=False)
            mask.meta["val"] = above
        with graph.inserting_before(node):
            if mask is not None:
                masked = graph.call_function(_aten.add.Tensor, (scaled, mask))
                masked.meta["val"], scaled = scaled.meta["val"], masked
            weights = graph.call_function(_aten.softmax.int, (scaled, -1))
            weights.meta["val"] = scaled.meta["val"]
            result = graph.call_function(_aten.matmul.default, (weights, value))
        result.meta["val"] = out
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def plain_operators(graph_module: fx.GraphModule) -> None:
    """Operators that work in place become those that do not; ReLU6 becomes a clip."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        if node.op == "call_function" and node.target in _RELU6:
            node.target, node.args = _aten.hardtanh.default, (argument(node, 0), 0.0, 6.0)


def remove_dropout(graph_module: fx.GraphModule) -> None:
    """Dropout is the identity in evaluation mode."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target in _DROPOUT:
            node.replace_all_uses_with(argument(node, 0))
            graph_module.graph.erase_node(node)


def fold_batch_norm(graph_module: fx.GraphModule) -> None:
    """Fold evaluation-mode batch norm into the layer before it: Jacob et al., 2018, equation 14."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target is not _aten.batch_norm.default:
            continue
        layer = argument(node, 0)
        plain = layer.op == "call_function" and (
            layer.target is not _aten.linear.default or node.meta["val"].dim() == 2
        )  # behind a linear layer on sequences, batch norm works along another axis than its outputs
        foldable = (
            plain and layer.op == "call_function" and layer.target in CONVOLUTIONS | {_aten.linear.default}
        )
        weight = constant(graph_module, argument(layer, 1)) if foldable else None
        if weight is None or len(layer.users) != 1 or len(layer.args[1].users) != 1:
            continue
        gamma, beta, mean, var = (constant(graph_module, a) for a in node.args[1:5])
        if mean is None or var is None:
            continue
        # float64: the folded net should differ from the trained one by rounding only.
        factor = (var.double() + argument(node, 7)).rsqrt()
        if gamma is not None:
            factor = factor * gamma.double()
        bias = constant(graph_module, argument(layer, 2))
        shift = (bias.double() if bias is not None else 0.0) - mean.double()
        new_bias = shift * factor + (beta.double() if beta is not None else 0.0)
        axis = 1 if layer.target in TRANSPOSED else 0
        if axis == 1 and len(layer.args) > 6 and layer.args[6] != 1:
            continue  # grouped transposed convolution: channels are spread over both axes
        shape = [-1 if i == axis else 1 for i in range(weight.dim())]
        set_constant(
            graph_module, layer.args[1], (weight.double() * factor.reshape(shape)).to(weight.dtype).detach()
        )
        name = str(layer.args[1].target).rpartition(".")[0]
        if bias is not None:
            set_constant(graph_module, layer.args[2], new_bias.to(weight.dtype).detach())
        else:
            leaf = f"{name}.bias" if name else f"{layer.name}_bias"
            new = add_constant(graph_module, leaf, new_bias.to(weight.dtype).detach(), layer)
            layer.args = (*layer.args[:2], new, *layer.args[3:])
        node.replace_all_uses_with(layer)
        graph_module.graph.erase_node(node)
        graph_module.meta.setdefault("normed", []).append(layer.name)


def pool_means(graph_module: fx.GraphModule) -> None:
    """``x.mean((2, 3))`` is global average pooling, and integer runtimes know it only by that name."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not _aten.mean.dim:
            continue
        source, axes = argument(node, 0), argument(node, 1)
        value = source.meta.get("val")
        if value is None or value.dim() != 4 or sorted(a % 4 for a in axes) != [2, 3]:
            continue
        keep = bool(argument(node, 2))
        with graph.inserting_before(node):
            pooled = graph.call_function(_aten.adaptive_avg_pool2d.default, (source, [1, 1]))
            result = pooled if keep else graph.call_function(_aten.flatten.using_ints, (pooled, 1))
        pooled.meta["val"] = value.mean((2, 3), keepdim=True)
        result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def prune_unused(graph_module: fx.GraphModule) -> None:
    """Nodes and parameters that nothing reads."""
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [n for n, _ in graph_module.named_parameters()] + [
        n for n, _ in graph_module.named_buffers()
    ]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph_module.get_submodule(path) if path else graph_module, leaf)
    graph_module.recompile()


def split_biases(graph_module: fx.GraphModule) -> None:
    """Linear layers add their bias in an operator of its own."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        bias = argument(node, 2) if node.op == "call_function" else None
        if node.target is not _aten.linear.default or bias is None:
            continue
        with graph.inserting_after(node):
            added = graph.call_function(_aten.add.Tensor, (node, bias))
        added.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(added, delete_user_cb=lambda user, own=added: user is not own)
        node.args = node.args[:2]
    graph_module.recompile()
