"""Networks in a file: safetensors with the recipe that rebuilds them in its header; never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.choices import Choice
from hwopt.core.dataset import SampleShape, tokens_of
from hwopt.core.hardware import LayerRule, QuantizationScheme
from hwopt.errors import ConfigError, UnsafeInputError
from hwopt.models.build import build_model, leave_out, resize_to, set_counters
from hwopt.models.ensemble import Ensemble
from hwopt.quantization.assign import Assignment
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import insert
from hwopt.quantization.tidy import split_biases

FORMAT: Final = 2
NEWEST: Final = 3  # with blocks left out, or several networks
_MOST_MEMBERS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that is needed to rebuild a network's structure."""

    model: Choice
    sample_shape: tuple[int, ...]  # a SampleShape where the samples are tokens
    classes: int
    shapes: Mapping[str, tuple[int, ...]] | None = None  # of the float module, where it was pruned
    scheme: QuantizationScheme | None = None  # of a fake-quantized network
    scheme_name: str | None = None  # the hardware profile that the scheme came from
    rules: tuple[LayerRule, ...] = ()  # layers that depart from the scheme
    scaled: tuple[tuple[str, tuple[str, ...]], ...] = ()  # tensors that SmoothQuant scales for some readers
    counters: Mapping[str, int] = field(default_factory=dict)  # heads and groups after pruning, by attribute
    dropped: tuple[str, ...] = ()  # blocks that were left out, by module path
    members: int = 1  # networks whose logits are averaged
    sparse: bool = False  # its zeros are meant, and further training keeps them

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            # Older versions would build something else of these.
            "format": NEWEST if self.dropped or self.members > 1 else FORMAT,
            "model": self.model.to_json(),
            "sample_shape": list(self.sample_shape),
            "tokens": tokens_of(self.sample_shape),
            "classes": self.classes,
            "shapes": None if self.shapes is None else {k: list(v) for k, v in self.shapes.items()},
            "scheme": None if self.scheme is None else self.scheme.to_json(),
            "scheme_name": self.scheme_name,
            "rules": [rule.to_json() for rule in self.rules],
            "scaled": [[tensor, list(users)] for tensor, users in self.scaled],
            "counters": dict(self.counters),
            "dropped": list(self.dropped),
            "members": self.members,
            "sparse": self.sparse,
        }

    def fits(self, sample_shape: Sequence[int], where: str) -> None:
        """ConfigError where the samples are not those of the network."""
        theirs, tokens = tuple(sample_shape), tokens_of(sample_shape)
        mine = tokens_of(self.sample_shape)
        if mine != tokens or (not tokens and theirs != tuple(self.sample_shape)):
            kinds = [
                f"{k} different tokens" if k else f"shape {list(s)}"
                for k, s in ((mine, self.sample_shape), (tokens, theirs))
            ]
            raise ConfigError(
                f"the network takes samples of {kinds[0]}, and the data has {kinds[1]}",
                where=where,
                fix="give the profile that the checkpoint was made with",
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_json``."""
        scheme = value["scheme"]
        first = value["format"] == 1  # without rules, and with other grids in quantized networks
        if value["format"] not in {1, FORMAT, NEWEST} or (first and scheme is not None):
            raise ConfigError(
                f"checkpoint format {value['format']}; this hwopt reads {FORMAT}",
                fix="quantize the float checkpoint again" if first else "upgrade hwopt",
            )
        return cls(
            model=Choice.from_json(value["model"]),
            sample_shape=SampleShape(value["sample_shape"], int(value.get("tokens", 0))),
            classes=value["classes"],
            shapes=None if value["shapes"] is None else {k: tuple(v) for k, v in value["shapes"].items()},
            scheme=None if scheme is None else QuantizationScheme.model_validate_json(canonical_json(scheme)),
            scheme_name=value["scheme_name"],
            rules=tuple(
                LayerRule.model_validate_json(canonical_json(rule))
                for rule in ([] if first else value["rules"])
            ),
            scaled=tuple((t, tuple(users)) for t, users in ([] if first else value["scaled"])),
            counters=dict(value.get("counters", {})),
            dropped=tuple(str(path) for path in value.get("dropped", ())),
            members=int(value.get("members", 1)),
            sparse=bool(value.get("sparse", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A rebuilt network; ``table`` holds the decisions where it is fake-quantized."""

    module: nn.Module
    recipe: Recipe
    table: Assignment | None = None


def save(path: Path, module: nn.Module, recipe: Recipe) -> None:
    """Write weights and recipe."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(state, path, metadata={"hwopt": canonical_json(recipe.to_json())})


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, for ``Recipe.shapes``."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def read_recipe(path: Path) -> Recipe:
    """The recipe alone; no tensor is read."""
    return _read(path, tensors=False)[0]


def load(path: Path, import_root: Path | None, own_model: Mapping[str, Any] | None = None) -> Network:
    """Rebuild the network and load its weights.

    Args:
        import_root: where the user's modules are looked for.
        own_model: the profile's model section. A checkpoint that names a function of the user's is only
            loaded where the profile names the same one: a file must not choose what code runs.
    Raises:
        ConfigError: not a checkpoint of hwopt, or its weights do not fit its recipe.
        UnsafeInputError: the file names code that the profile does not name.
    """
    recipe, state = _read(path, tensors=True)
    if recipe.model.factory is not None and recipe.model.to_json() != dict(own_model or {}):
        raise UnsafeInputError(
            f"the checkpoint asks for {recipe.model.factory!r}, which is not the model of the profile",
            where=str(path),
            fix="give the profile that the checkpoint was made with",
        )
    rng = torch.get_rng_state()  # building initializes weights; that must not disturb the caller's stream
    module = _built(recipe, import_root)
    leave_out(module, recipe.dropped)
    if recipe.shapes is not None:
        resize_to(module, recipe.shapes)
        set_counters(module, recipe.counters)
    table = None
    if recipe.scheme is not None:
        module, table = quantized_twin(
            module, recipe.sample_shape, recipe.scheme, recipe.rules, recipe.scaled
        )
    torch.set_rng_state(rng)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights do not fit the model: {str(error).splitlines()[-1].strip()}",
            where=str(path),
            fix="the model's code has changed since the checkpoint was written; train again",
        ) from None
    return Network(module=module, recipe=recipe, table=table)


def _built(recipe: Recipe, import_root: Path | None) -> nn.Module:
    def build() -> nn.Module:
        return build_model(recipe.model, recipe.sample_shape, recipe.classes, import_root)

    if not 1 <= recipe.members <= _MOST_MEMBERS:
        raise UnsafeInputError(f"the recipe asks for {recipe.members} networks")
    return build() if recipe.members == 1 else Ensemble([build() for _ in range(recipe.members)])


def is_onnx(path: Path) -> bool:
    """Whether a file is ONNX and not safetensors, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) < 9 or head[8:] != b"{"  # safetensors: length of the header, then JSON


def kind_of(path: Path) -> Kind:
    """Whether a checkpoint is float or fake-quantized, or an ONNX model."""
    if path.suffix == ".onnx":
        return Kind.ONNX
    return Kind.CHECKPOINT if read_recipe(path).scheme is None else Kind.QUANTIZED_CHECKPOINT


def quantized_twin(
    module: nn.Module,
    sample_shape: tuple[int, ...],
    scheme: QuantizationScheme,
    rules: Sequence[LayerRule] = (),
    scaled: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> tuple[fx.GraphModule, Assignment]:
    """The fake-quantized graph of a float module, not yet calibrated."""
    graph_module = to_graph(module, sample_shape)
    if scheme.bias == "apart":
        split_biases(graph_module)
    net = FxNet(graph_module)
    for tensor, users in scaled:  # the factors themselves are among the weights
        width = int(net.nodes[tensor].meta["val"].shape[-1])
        net.scale(tensor, np.ones(width, np.float32), users)
    return graph_module, insert(graph_module, scheme, rules)


def quantized_recipe(
    recipe: Recipe,
    module: nn.Module,
    scheme: QuantizationScheme,
    name: str,
    rules: Sequence[LayerRule] = (),
    scaled: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> Recipe:
    """The recipe of ``module``'s fake-quantized twin."""
    return replace(
        recipe,
        shapes=shapes_of(module),
        scheme=scheme,
        scheme_name=name,
        rules=tuple(rules),
        scaled=tuple(scaled),
    )


def _read(path: Path, *, tensors: bool) -> tuple[Recipe, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as handle:
            header = (handle.metadata() or {}).get("hwopt")
            state = {name: handle.get_tensor(name) for name in handle.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise UnsafeInputError(f"not a safetensors file: {error}", where=str(path)) from None
    if header is None:
        raise ConfigError(
            "the file holds weights but no hwopt recipe",
            where=str(path),
            fix="give a checkpoint written by `hwopt train`, `prune` or `quantize`",
        )
    try:
        return Recipe.from_json(json.loads(header)), state
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise UnsafeInputError(
            f"the recipe in the file's header is broken: {error}", where=str(path)
        ) from None
