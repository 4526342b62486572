"""One set of weights that serves many networks.

A network is a *shape*: a width for every group of channels, and how many blocks are left out. Its weights are those
of the strongest channels of the whole network; narrower networks use a part of what wider ones use. Trained by the
sandwich rule with in-place distillation: every step trains the whole network from the labels, and the least one and
some random ones from the whole one's answers.

Reference:
    Yu and Huang, ICCV 2019 (universally slimmable networks), sections 3.2 and 3.3.
    Cai et al., ICLR 2020 (once-for-all).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hwopt.core.hardware import Pruning
from hwopt.models.build import leave_out
from hwopt.pruning.cut import Keep, cut, everything, positions, run
from hwopt.pruning.importance import Scores
from hwopt.pruning.structure import Structure
from hwopt.pruning.widths import nearest
from hwopt.training.evaluation import evaluate, refresh_batch_norm

_CACHED: Final = 256  # narrow copies that are kept


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A network: the place of each group's width among the choices, and how many blocks are left out."""

    widths: tuple[int, ...]
    dropped: int = 0


@dataclass(slots=True)
class _Narrow:
    """A copy at one shape, and where its weights lie in the whole network's."""

    module: nn.Module
    places: Mapping[str, tuple[tuple[int, Tensor], ...]]


class SuperNet:
    """The whole network and all that it contains.

    Args:
        module: the whole network; its weights are trained in place.
        widths: shares of each group, from 1 down; rounded to what the device likes.
        blocks: module paths that may be left out, the one that is missed least first.
    """

    def __init__(
        self,
        module: nn.Module,
        structure: Structure,
        scores: Scores,
        widths: Sequence[float],
        rules: Pruning,
        blocks: Sequence[str] = (),
    ) -> None:
        self.module, self.structure, self.blocks = module, structure, tuple(blocks)
        self.order = {g.layer: np.argsort(-scores[g.layer], kind="stable") for g in structure.groups}
        self.choices = {
            g.layer: sorted({nearest(g, g.width * share, rules) for share in widths}, reverse=True)
            for g in structure.groups
        }
        self._gone_at = [self._left_out_at(g.units) for g in structure.groups]
        self._narrow: dict[Shape, _Narrow] = {}
        self._pattern = copy.deepcopy(
            module
        )  # for structure only: what trains has hooks that cannot be copied

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices of every group."""
        return tuple(len(self.choices[g.layer]) for g in self.structure.groups)

    @property
    def count(self) -> int:
        """How many networks there are."""
        return sum(
            math.prod(n for n, gone in zip(self.sizes, self._gone_at, strict=True) if gone > dropped)
            for dropped in range(len(self.blocks) + 1)
        )

    def _left_out_at(self, units: npt.NDArray[np.int64]) -> int:
        """With how many blocks left out nothing of a group is there any more."""
        mine = set(units.tolist())
        touched = [axis[0] for axis, ids in self.structure.owners.items() if mine & set(ids.tolist())]
        for dropped in range(1, len(self.blocks) + 1):
            gone = tuple(f"{path}." for path in self.blocks[:dropped])
            if all(name.startswith(gone) for name in touched):
                return dropped
        return len(self.blocks) + 1

    def shape(self, widths: Sequence[int], dropped: int) -> Shape:
        """A network by its choices; those of groups that are left out do not count."""
        there = zip(widths, self._gone_at, strict=True)
        return Shape(tuple(width if gone > dropped else 0 for width, gone in there), dropped)

    def every(self) -> list[Shape]:
        """All networks."""
        depths = range(len(self.blocks) + 1)
        grids = itertools.product(*(range(n) for n in self.sizes))
        return list(dict.fromkeys(self.shape(widths, d) for widths in grids for d in depths))

    @property
    def least(self) -> Shape:
        """The narrowest and shallowest."""
        return self.shape([n - 1 for n in self.sizes], len(self.blocks))

    @property
    def whole(self) -> Shape:
        """The network itself."""
        return Shape((0,) * len(self.sizes))

    def random(self, rng: np.random.Generator) -> Shape:
        """Any of them, every choice as likely as every other."""
        widths = [int(rng.integers(n)) for n in self.sizes]
        return self.shape(widths, int(rng.integers(len(self.blocks) + 1)))

    def units(self, shape: Shape) -> dict[str, int]:
        """Width of every group."""
        groups = self.structure.groups
        return {g.layer: self.choices[g.layer][i] for g, i in zip(groups, shape.widths, strict=True)}

    def keep(self, shape: Shape) -> Keep:
        """The strongest units of every group."""
        keep, units = everything(self.structure), self.units(shape)
        for group in self.structure.groups:
            keep[group.units[self.order[group.layer][units[group.layer] :]]] = False
        return keep

    def gone(self, shape: Shape) -> tuple[str, ...]:
        """The blocks that a shape leaves out."""
        return self.blocks[: shape.dropped]

    def structure_at(self, shape: Shape) -> Structure:
        """The structure without the blocks that a shape leaves out."""
        gone = tuple(f"{path}." for path in self.gone(shape))
        owners = {axis: ids for axis, ids in self.structure.owners.items() if not axis[0].startswith(gone)}
        heads = {
            name: ids for name, ids in self.structure.heads.items() if not f"{name[0]}.".startswith(gone)
        }
        return replace(self.structure, owners=owners, heads=heads) if gone else self.structure

    def narrow(self, shape: Shape) -> _Narrow:
        """The copy of a shape, made once."""
        found = self._narrow.get(shape)
        if found is None:
            if len(self._narrow) >= _CACHED:
                self._narrow.pop(next(iter(self._narrow)))
            keep = self.keep(shape)
            module = copy.deepcopy(self._pattern)
            cut(module, self.structure, keep)
            leave_out(module, self.gone(shape))
            places: dict[str, list[tuple[int, Tensor]]] = {name: [] for name, _ in module.named_parameters()}
            for (name, dim), ids in self.structure.owners.items():
                index = positions(ids, keep)
                if name in places and len(index) < len(ids):
                    places[name].append((dim, torch.from_numpy(index)))
            found = self._narrow[shape] = _Narrow(module, {n: tuple(p) for n, p in places.items()})
        return found

    def weights(self, shape: Shape) -> dict[str, Tensor]:
        """A shape's weights, as parts of the whole network's: gradients flow back to them."""
        whole = dict(self.module.named_parameters())
        found: dict[str, Tensor] = {}
        for name, places in self.narrow(shape).places.items():
            value: Tensor = whole[name]
            for dim, index in places:
                value = value.index_select(dim, index.to(value.device))
            found[name] = value
        return found

    def answers(self, shape: Shape, x: Tensor) -> Tensor:
        """Outputs of a shape in training mode."""
        narrow = self.narrow(shape)
        narrow.module.to(x.device).train()  # its batch norms' statistics go along
        result: Tensor = functional_call(narrow.module, self.weights(shape), (x,))
        return result

    def alone(self, shape: Shape, samples: Tensor) -> nn.Module:
        """The network of a shape by itself; its batch-norm statistics are estimated anew, as they must be."""
        module = copy.deepcopy(self.narrow(shape).module).to(samples.device)
        with torch.no_grad():
            weights = self.weights(shape)
            for name, parameter in module.named_parameters():
                parameter.copy_(weights[name])
        refresh_batch_norm(module, samples)
        return module.eval()


class Sandwich:
    """A hook of the training loop that adds the narrow networks to every step."""

    def __init__(self, net: SuperNet, per_step: int, seed: int) -> None:
        self._net, self._per_step, self._seed = net, per_step, seed
        self._step = 0
        self._seen: tuple[Tensor, Tensor] | None = None
        self._handle = net.module.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if module.training:
            self._seen = (inputs[0], output)

    def epoch(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def penalty(self, share: float) -> Tensor | None:
        """Cross-entropy of the least and some random networks against the whole one's answers."""
        if self._seen is None:
            return None
        (x, logits), self._seen = self._seen, None
        rng = np.random.default_rng([self._seed, 11, self._step])
        shapes = [self._net.least, *(self._net.random(rng) for _ in range(self._per_step))]
        soft = functional.softmax(logits.detach(), dim=1)
        total = sum(functional.cross_entropy(self._net.answers(shape, x), soft) for shape in shapes)
        return total if isinstance(total, Tensor) else None

    def stepped(self) -> None:
        """The next step draws other networks."""
        self._step += 1

    def state_dict(self) -> dict[str, int]:
        """What a killed training needs to go on."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self._step = int(state["step"])

    def close(self) -> None:
        """Look no more."""
        self._handle.remove()


def blocks_of(
    module: nn.Module, sample_shape: Sequence[int], structure: Structure, x: Tensor, y: Tensor
) -> list[str]:
    """Parts of sequences without which the network still runs, also when it is narrow; what is missed least first.

    Only parts with weights of their own that give what they take in shape; the outermost of nested ones.
    """
    rows: list[tuple[float, str]] = []
    for path, part in module.named_modules():
        parent = module.get_submodule(path.rpartition(".")[0]) if path else None
        if not isinstance(parent, nn.Sequential) or not any(p.dim() > 1 for p in part.parameters()):
            continue
        if any(path.startswith(f"{other}.") for _, other in rows) or not _keeps_shape(
            module, path, sample_shape
        ):
            continue
        if not _runs_without(module, [path], structure, sample_shape):
            continue
        shorter = copy.deepcopy(module)
        leave_out(shorter, [path])
        refresh_batch_norm(shorter, x)
        rows.append((evaluate(shorter, x, y)[0], path))
    found: list[str] = []
    for _, path in sorted(rows):
        if _runs_without(module, [*found, path], structure, sample_shape):
            found.append(path)
    return found


def _runs_without(
    module: nn.Module, gone: Sequence[str], structure: Structure, sample_shape: Sequence[int]
) -> bool:
    """Whether a network runs without some parts, whatever the widths of its groups.

    Widths are halved by the binary digits of a group's number: of any two groups, one is once halved and the other not.
    """
    groups = structure.groups
    for digit in range(len(groups).bit_length() + 1):
        trial, keep = copy.deepcopy(module), everything(structure)
        for number, group in enumerate(groups, 1):
            if digit == len(groups).bit_length() or number >> digit & 1:  # at last all of them
                keep[group.units[max(1, group.width // 2) :]] = False
        try:
            cut(trial, structure, keep)
            leave_out(trial, gone)
            run(trial, sample_shape)
        except Exception:  # whatever the user's forward raises: these parts stay
            return False
    return True


def _keeps_shape(module: nn.Module, path: str, sample_shape: Sequence[int]) -> bool:
    seen: list[bool] = []

    def look(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        same = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        seen.append(same and inputs[0].shape == output.shape)

    handle = module.get_submodule(path).register_forward_hook(look)
    try:
        run(module, sample_shape)
    finally:
        handle.remove()
    return bool(seen) and all(seen)
