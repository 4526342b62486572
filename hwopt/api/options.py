"""How files are measured, and the arrays they are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx

from hwopt import checkpoints
from hwopt.core.backend import Recipe
from hwopt.core.dataset import Array, tokens_of
from hwopt.data.feeds import feeds
from hwopt.data.npz import read_arrays
from hwopt.errors import ConfigError
from hwopt.latency.measure import Effort
from hwopt.model_check import check_model
from hwopt.quantization.onnx_net import signature

Scenario = Literal["single", "batch", "paced"]
AUTO: Final = "auto"
_BATCH: Final = 32  # of the scenario batch, unless one is given
_RATE: Final = 10.0  # calls a second of the scenario paced, unless one is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How files are measured."""

    target: str = "host-cpu"
    runtimes: tuple[str, ...] = ()  # none: the first of the device's that is here; auto: all that are here
    scenario: Scenario = "single"
    batch: int | None = None
    rate_hz: float | None = None
    threads: int = 1
    spinning: bool = False
    budget_seconds: float = 6.0
    half_width: float = 0.01
    processes: int = 2
    seed: int = 0
    strict: bool = False  # refuse to measure where the preflight warns

    def __post_init__(self) -> None:
        if isinstance(self.runtimes, str):
            object.__setattr__(self, "runtimes", (self.runtimes,))
        if AUTO in self.runtimes and len(self.runtimes) > 1:
            raise ConfigError("auto means every runtime that is here", fix="name no other beside it")
        if self.processes < 1 or (self.batch is not None and self.batch < 1):
            raise ConfigError("processes and batch are at least 1")
        if self.rate_hz is not None and self.scenario != "paced":
            raise ConfigError("a rate belongs to the scenario paced", fix="add --scenario paced")
        if self.scenario == "paced" and self.batch not in {None, 1}:
            raise ConfigError("the scenario paced asks for one sample at a time", fix="leave out the batch")

    @property
    def samples(self) -> int:
        """Batch of the scenario, for files that take any."""
        return self.batch or (_BATCH if self.scenario == "batch" else 1)

    def recipe(self) -> Recipe:
        """How every file is executed."""
        return Recipe(threads=self.threads, spinning=self.spinning)

    def effort(self) -> Effort:
        """For the measuring itself."""
        return Effort(
            seed=self.seed,
            half_width=self.half_width,
            budget_seconds=self.budget_seconds,
            processes=self.processes,
            gap_seconds=1 / (self.rate_hz or _RATE) if self.scenario == "paced" else None,
        )


def feed_of(
    model: Path, options: Options, inputs: str | Path | Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """One call's arrays: the first rows of ``inputs``, or random numbers of the model's own shapes and types.

    A model whose first axis is fixed gets that batch, unless another was asked for.

    Raises:
        ConfigError: the batch is not the model's, or there are fewer rows than it takes.
    """
    shapes, dtypes = _signature(model)
    own = next((shape[0] for shape in shapes.values() if len(shape) > 1 and shape[0] is not None), None)
    batch = options.batch or own or options.samples
    if own is not None and own != batch:
        raise ConfigError(
            f"the model always takes {own} samples, and the batch is {batch}",
            where=str(model),
            fix=f"measure with --batch {own}, or export the model with a free first axis",
        )
    if inputs is None:
        rng = np.random.default_rng(options.seed)
        return {name: _random(rng, name, shape, dtypes[name], batch, model) for name, shape in shapes.items()}
    where = None if isinstance(inputs, Mapping) else str(inputs)
    arrays = dict(inputs) if isinstance(inputs, Mapping) else read_arrays(Path(inputs))
    short = {
        n: len(a)
        for n, a in arrays.items()
        if n in shapes and np.ndim(a) == len(shapes[n]) and len(a) < batch
    }
    if short:
        name, rows = next(iter(short.items()))
        raise ConfigError(
            f"the batch is {batch}, and {name} has {rows} rows",
            where=where,
            fix=f"measure with --batch {rows}",
        )
    fixed = {n: (batch, *shape[1:]) if shape and shape[0] is None else shape for n, shape in shapes.items()}
    return feeds(arrays, fixed, dtypes, where=where)[0]


def check_file(model: Path) -> None:
    """Refuse what is no model, before anything else is asked."""
    if not model.is_file():
        raise ConfigError("no such file", where=str(model), fix="give the path of an .onnx file")
    if checkpoints.is_onnx(model):
        check_model(model)


def _signature(model: Path) -> tuple[dict[str, tuple[int | None, ...]], dict[str, np.dtype[Any]]]:
    check_file(model)
    if not checkpoints.is_onnx(model):
        shape = checkpoints.read_recipe(model).sample_shape
        dtype = np.int64 if tokens_of(shape) else np.float32
        return {"input": (None, *shape)}, {"input": np.dtype(dtype)}
    proto = onnx.load(model, load_external_data=False)
    stored = {i.name for i in proto.graph.initializer}
    shapes, dtypes = signature(proto)
    return {n: s for n, s in shapes.items() if n not in stored}, dtypes


def _random(
    rng: np.random.Generator, name: str, shape: tuple[int | None, ...], dtype: Any, batch: int, model: Path
) -> Array:
    """Never zeros: they run faster. Integers are 0 or 1, which every table of tokens has."""
    if any(size is None for size in shape[1:]):
        raise ConfigError(
            f"the input {name!r} has the shape {list(shape)}: only the first axis may be free",
            where=str(model),
            fix="give real inputs: --inputs FILE.npz",
        )
    full = tuple(batch if size is None else size for size in shape)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.random(full).astype(kind)
    if kind.kind in "iub":
        return rng.integers(0, 2, size=full).astype(kind)
    raise ConfigError(f"the input {name!r} holds {kind}", where=str(model), fix="give real inputs: --inputs")
