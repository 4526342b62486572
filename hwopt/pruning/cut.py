"""Cut units out of a network, and know its shapes before they are cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from hwopt.errors import ConfigError
from hwopt.models.build import resize_to
from hwopt.models.sample import example
from hwopt.pruning.structure import Structure, structure_of

SINGLE: Final = "it has a single unit"

Keep = npt.NDArray[np.bool_]  # one entry a unit of the whole network
Vector = npt.NDArray[np.float64]
Widths = Mapping[str, int]  # units by group, under the name of its layer


def examine(module: nn.Module, graph: fx.GraphModule, sample_shape: Sequence[int]) -> Structure:
    """The groups of ``module`` that can be cut; every one was tried.

    A forward function may fix a width in ways that no graph shows. So one unit of each group is cut from a
    copy, and a group whose copy does not run is frozen with the reason.
    """
    structure = structure_of(graph, module)
    reasons: dict[str, str] = {}
    for group in structure.groups:
        if group.width < 2:
            reasons[group.layer] = SINGLE
            continue
        for width in (group.width - 1, 1):
            why = breaks(module, structure, {group.layer: width}, sample_shape)
            if why is not None:
                reasons[group.layer] = f"its width is fixed in forward(): {why}"
                break
    return structure.without(reasons)


def run(module: nn.Module, sample_shape: Sequence[int]) -> Tensor:
    """Outputs of two zero samples, in evaluation mode."""
    was_training = module.training
    module.train(False)
    with torch.no_grad():
        result: Tensor = module(example(sample_shape))
    module.train(was_training)
    return result


def breaks(
    module: nn.Module, structure: Structure, widths: Widths, sample_shape: Sequence[int]
) -> str | None:
    """Why a copy of ``module`` does not run at these widths; None where it runs."""
    trial = copy.deepcopy(module)
    try:
        cut(trial, structure, narrowed(structure, widths))
        _try(trial, sample_shape)
    except Exception as error:  # whatever the user's forward raises
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _try(module: nn.Module, sample_shape: Sequence[int]) -> None:
    """Run without data where that is possible: shapes alone are checked, in no time."""
    try:
        with torch.no_grad():
            copy.deepcopy(module).to("meta").eval()(example(sample_shape, device="meta"))
    except Exception:  # forward() may look at values, which a tensor without data has not
        run(module, sample_shape)


def full_widths(structure: Structure) -> dict[str, int]:
    """Units of every group before anything is cut."""
    return {group.layer: group.width for group in structure.groups}


def narrowed(structure: Structure, widths: Widths) -> Keep:
    """Keep the first units of each group: for shapes, and for latency, which does not depend on values."""
    keep = everything(structure)
    for group in structure.groups:
        keep[group.units[widths.get(group.layer, group.width) :]] = False
    return keep


def strongest(structure: Structure, scores: Mapping[str, Vector], widths: Widths) -> Keep:
    """Keep the most important units of each group."""
    keep = everything(structure)
    for group in structure.groups:
        width = widths.get(group.layer, group.width)
        order = np.argsort(-scores[group.layer], kind="stable")
        keep[group.units[order[width:]]] = False
    return keep


def everything(structure: Structure) -> Keep:
    """All units kept."""
    highest = max((int(ids.max(initial=0)) for ids in structure.owners.values()), default=0)
    return np.ones(highest + 1, np.bool_)


def positions(ids: npt.NDArray[np.int64], keep: Keep) -> npt.NDArray[np.int64]:
    """Positions of an axis that stay."""
    return np.flatnonzero((ids < 0) | keep[np.maximum(ids, 0)])


def cut(module: nn.Module, structure: Structure, keep: Keep) -> None:
    """Remove every unit that is not kept, in place, from parameters, buffers and counters of heads.

    Raises:
        ConfigError: a layer would keep no channel.
    """
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for (name, dim), ids in structure.owners.items():
        kept = positions(ids, keep)
        if not len(kept):
            raise ConfigError(f"cutting would leave {name} without channels", fix="keep more")
        state[name] = state[name].index_select(dim, torch.from_numpy(kept))
    resize_to(module, {name: tuple(tensor.shape) for name, tensor in state.items()})
    for (path, attribute), units in structure.heads.items():
        setattr(module.get_submodule(path), attribute, int(keep[units].sum()))
    module.load_state_dict(state)


def grouped(module: nn.Module) -> dict[str, int]:
    """Groups of every convolution: a rebuilt network cannot read them off the shapes of its weights."""
    return {
        f"{name}.groups": layer.groups
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd)
    }


def attributes_at(structure: Structure, keep: Keep) -> dict[str, int]:
    """Counters of heads after a cut, by ``module.attribute``."""
    return {
        f"{path}.{name}" if path else name: int(keep[u].sum()) for (path, name), u in structure.heads.items()
    }
