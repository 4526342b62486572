"""From a choice to a network, by name or by the user's own function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwopt.core.canonical import canonical_json
from hwopt.core.choices import Choice, ModelSpec
from hwopt.core.dataset import tokens_of
from hwopt.errors import ConfigError
from hwopt.models.sample import example
from hwopt.plugins import call_factory, load_reference, resolve


def build_model(choice: Choice, sample_shape: tuple[int, ...], classes: int, root: Path | None) -> nn.Module:
    """The network of ``choice``, freshly initialized from torch's global generator, in float32 on the CPU."""
    if choice.name is not None:
        spec: ModelSpec = resolve("model", choice.name)
        options = spec.settings.model_validate_json(canonical_json(dict(choice.options)))
        model: Any = load_reference(spec.build)(sample_shape, classes, options)
    else:
        offered = {"sample_shape": sample_shape, "classes": classes, "tokens": tokens_of(sample_shape)}
        model = call_factory(str(choice.factory), root, offered, choice.options)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{choice.factory} returned {type(model).__name__}, not a torch.nn.Module",
            fix="return the network itself",
        )
    _check_output(model, sample_shape, classes)
    return model


def _check_output(model: nn.Module, sample_shape: tuple[int, ...], classes: int) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(example(sample_shape))
    except Exception as error:  # whatever the user's forward raises
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the model does not take samples of shape {list(sample_shape)}: {text}",
            fix="choose a model that fits the data, or change the model's options",
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"the model returns a {type(logits).__name__}", fix="return one tensor of logits from forward()"
        )
    if tuple(logits.shape) != (2, classes):
        raise ConfigError(
            f"the model gives outputs of shape {list(logits.shape)} for 2 samples; {classes} classes need "
            f"{[2, classes]}",
            fix="let its last layer have one output a class",
        )


def resize_to(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give every layer the width of the tensors in ``shapes``, in place, so that pruned weights load.

    Layers take their sizes from their weight, so this works on any module made of torch's layers.
    """
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        changed = False
        depthwise = isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            shape = shapes.get(prefix + leaf)
            if shape is None or tuple(tensor.shape) == shape:
                continue
            changed = True
            empty = torch.zeros(shape, dtype=tensor.dtype)
            setattr(module, leaf, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
        if changed:
            _adopt_sizes(module, depthwise=depthwise)


def set_counters(model: nn.Module, counters: Mapping[str, int]) -> None:
    """Tell modules how many heads or groups are left; keys are ``module.attribute``."""
    for key, count in counters.items():
        path, _, attribute = key.rpartition(".")
        owner = model.get_submodule(path)
        if not isinstance(getattr(owner, attribute, None), int) or not isinstance(count, int):
            raise ConfigError(f"the model has no counter {key}", fix="its code has changed; train again")
        setattr(owner, attribute, count)
        if isinstance(owner, nn.modules.conv._ConvNd) and not owner.transposed:
            owner.in_channels = owner.weight.shape[1] * owner.groups


def _adopt_sizes(module: nn.Module, *, depthwise: bool) -> None:
    """Tell a layer the sizes of its weights; ``depthwise``: it had a group a channel."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.RNNBase):
        hidden, inputs = module.get_parameter("weight_hh_l0"), module.get_parameter("weight_ih_l0")
        module.hidden_size, module.input_size = hidden.shape[1], inputs.shape[1]
    elif isinstance(module, nn.modules.conv._ConvNd):
        if depthwise:
            outputs_a_group = module.out_channels // module.groups
            module.out_channels = module.weight.shape[0]
            module.groups = module.in_channels = module.out_channels // outputs_a_group
        elif module.transposed:
            module.in_channels, module.out_channels = (
                module.weight.shape[0],
                module.weight.shape[1] * module.groups,
            )
        else:
            module.out_channels, module.in_channels = (
                module.weight.shape[0],
                module.weight.shape[1] * module.groups,
            )
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        kept = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(kept)


def leave_out(module: nn.Module, blocks: Sequence[str]) -> None:
    """Put identities in the places of blocks; a path that is not there is a ConfigError."""
    for path in blocks:
        parent, _, name = path.rpartition(".")
        try:
            if not name:
                raise AttributeError(path)
            module.get_submodule(path)
        except AttributeError:
            raise ConfigError(f"the network has no block {path!r} to leave out") from None
        setattr(module.get_submodule(parent), name, nn.Identity())
