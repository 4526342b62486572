"""What the verbs of ``hwopt train`` do: a profile in, JSON out."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, cast

from hwopt.core.canonical import finite_or_none
from hwopt.core.profile import PipelineProfile
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine import host as this_host
from hwopt.engine.perform import foreign_code, loader
from hwopt.engine.single import Job, artifact, run_stage
from hwopt.errors import ConfigError, StageFailedError
from hwopt.plugins import load_reference, resolve
from hwopt.store.atomic import explained, write_text

_MOST_STEPS: Final = 1_000_000
_PLACES: Final = [i / 10 - 1 for i in range(21)]


def train(profile: PipelineProfile, output: Path, progress: Progress) -> Mapping[str, Any] | None:
    """Train to a file; the facts of the stage, None in a helper process under torchrun."""
    _trains(profile)
    config = profile.source.config
    if "LOCAL_RANK" not in os.environ:
        return _to_file(profile, output, progress, isolated=True)
    distributed = load_reference("hwopt.training.distributed:start").__globals__
    distributed["start"]()
    try:
        if distributed["rank"]():
            with tempfile.TemporaryDirectory() as folder:
                job = Job(profile=profile, hardware=None, progress=silent)
                nowhere = {"checkpoint": Path(folder) / "none"}
                run_stage("train", config, job, {}, nowhere, isolated=False)
            return None
        return _to_file(profile, output, progress, isolated=False)
    finally:
        distributed["stop"]()


def _to_file(
    profile: PipelineProfile, output: Path, progress: Progress, *, isolated: bool
) -> Mapping[str, Any]:
    job = Job(profile=profile, hardware=None, progress=progress)
    _room_for(output)
    keep = output.parent / f".{output.name}.partial"
    facts = run_stage(
        "train", profile.source.config, job, {}, {"checkpoint": output}, keep=keep, isolated=isolated
    )
    shutil.rmtree(keep, ignore_errors=True)
    return facts


def _trains(profile: PipelineProfile) -> None:
    if profile.source.stage != "train":
        raise ConfigError("an ONNX model is not trained", where=profile.model_where, fix="name a torch model")


class _Bench:
    """A profile's network, samples and settings, made once for a verb."""

    def __init__(self, profile: PipelineProfile) -> None:
        _trains(profile)
        load_reference("torch:set_num_threads")(profile.threads or this_host.usable_cores())
        self.profile = profile
        self.root = profile.path.resolve().parent
        self.dataset: Any = loader(profile.data, profile.data_where, self.root)()
        self.settings = cast(Any, profile.source.config)
        self.data: Any = load_reference("hwopt.training.batches:split")(
            self.dataset, self.settings.validation_share, profile.seed
        )

    def network(self, seed: int) -> Any:
        """Fresh weights."""
        load_reference("torch:manual_seed")(seed)
        build = load_reference("hwopt.models.build:build_model")
        return build(self.profile.model, self.dataset.sample_shape, self.dataset.classes, self.root)


def _bounded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Run a verb where the user's modules can be imported, behind the boundary to foreign code."""

    @wraps(verb)
    def run(profile: PipelineProfile, *given: Any, **more: Any) -> Any:
        with foreign_code(profile.path.resolve().parent):
            return verb(profile, *given, **more)

    return run


def _room_for(path: Path) -> None:
    """Make the folder of an output before the work, not after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, path) from error
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", fix="give the name of a file")


@_bounded
def compare(profile: PipelineProfile, output: Path | None, progress: Progress) -> dict[str, Any]:
    """Run the race of the section ``compare``; the result is also written to ``output``."""
    if output is not None:
        _room_for(output)
    race = profile.compare
    if race is None:
        raise ConfigError(
            "the profile has no section compare",
            where=str(profile.path),
            fix="write compare: {entrants: [adamw, momentum], accuracy: 0.97}",
        )
    bench = _Bench(profile)
    if not len(bench.data.x_validation):
        raise ConfigError(
            "a race is judged on the validation split, and there is none",
            where=profile.source.where, fix="set train.validation_share above 0",
        )  # fmt: skip
    keep = None if output is None else output.with_name(f".{output.name}.trials")
    result: dict[str, Any] = load_reference("hwopt.training.race:race")(
        bench.network,
        bench.data,
        bench.settings,
        race,
        init=bench.settings.init,
        progress=progress,
        keep=keep,
    )
    if output is not None:
        write_text(output, load_reference("hwopt.core.canonical:pretty_json")(result))
        if keep is not None:
            keep.unlink(missing_ok=True)
    return result


def race_table(result: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a race as text."""
    rows: list[list[str]] = load_reference("hwopt.training.race:table")(result)
    return rows


@_bounded
def schedule_of(profile: PipelineProfile) -> list[tuple[float, float]]:
    """Learning rate at every step of the profile's training."""
    _trains(profile)
    settings: Any = profile.source.config
    samples = len(loader(profile.data, profile.data_where, profile.path.resolve().parent)().x_train)
    samples -= round(samples * settings.validation_share)
    size = samples if settings.batch_size == "full" else settings.batch_size
    per_epoch = max(1, load_reference("hwopt.training.batches:batch_count")(samples, size))
    steps = min(per_epoch * settings.epochs, settings.max_steps or per_epoch * settings.epochs)
    schedule = settings.schedule
    warmup, options = schedule.warmup_steps(steps), schedule.checked
    position = load_reference("hwopt.training.schedules:Position")
    warm_up = load_reference("hwopt.training.schedules:warm_up")
    base = 1.0 if settings.optimizer.lr == "auto" else settings.optimizer.rate
    rates = []
    if steps > _MOST_STEPS:
        raise ConfigError(
            f"a schedule of {steps:,} steps is not drawn", fix=f"lower epochs: {_MOST_STEPS:,} at most"
        )
    losses: tuple[float, ...] = ()
    for step in range(steps):
        if schedule.spec.needs_validation and step % per_epoch == 0 and step:
            losses = (*losses, 1.0)
        at = position(step=step, steps=steps, per_epoch=per_epoch, warmup=warmup, losses=losses)
        factor = schedule.floor + (1 - schedule.floor) * schedule.spec.factor(at, options)
        rates.append((float(step), base * (warm_up(step, warmup) if step < warmup else factor)))
    return rates


def drawn(rates: Sequence[tuple[float, float]], width: int = 72, height: int = 12) -> list[str]:
    """A curve in letters."""
    top = max(rate for _, rate in rates)
    columns = [rates[round(i * (len(rates) - 1) / (width - 1))][1] for i in range(width)]
    lines = []
    for row in range(height, 0, -1):
        low = (row - 0.5) / height * top
        name = f"{top * row / height:9.2g} " if row in {height, height // 2} else " " * 10
        lines.append(name + "".join("█" if value >= low else " " for value in columns).rstrip())
    lines.append(" " * 10 + "─" * width)
    last = f"step {len(rates) - 1:,}"
    lines.append(" " * 10 + "0" + last.rjust(width - 1))
    return lines


@_bounded
def probe(profile: PipelineProfile, memory_bytes: int, progress: Progress) -> dict[str, Any]:
    """Preflight, range test, batch probe, noise scale."""
    bench = _Bench(profile)
    network = bench.network(profile.seed)
    settings, data, seed = bench.settings, bench.data, profile.seed
    first = load_reference("hwopt.training.probes:preflight")(
        network, data, settings, bench.dataset.classes, seed=seed
    )
    progress(f"preflight: first loss {first.first_loss:.3g}, one batch by heart {first.by_heart:.0%}")
    rates = load_reference("hwopt.training.range_test:range_test")(
        network, data, settings, seeds=(seed, seed + 1, seed + 2), progress=progress
    )
    batch = load_reference("hwopt.training.probes:batch_probe")(
        network, data, settings, memory_bytes=memory_bytes, progress=progress
    )
    noise = load_reference("hwopt.training.probes:noise_scale")(network, data, seed=seed)
    suggestion = (
        f"{rates.suggested:.3g} (three seeds: {rates.low:.2g} to {rates.high:.2g})"
        if rates.suggested is not None
        else f"no clear answer (three seeds: {rates.low:.2g} to {rates.high:.2g})"
    )
    text = [
        f"first loss     {first.first_loss:.3f}, an even guess has {first.even_guess:.3f}",
        f"one batch      {first.by_heart:.0%} learnt by heart",
        f"learning rate  {suggestion}, for {settings.optimizer.name}",
        f"batch          {batch.chosen}: {batch.why}",
        f"noise          {noise.text}; of the untrained network, it grows in training",
        *(f"problem: {line}" for line in first.problems),
    ]
    return {
        "schema_version": 1,
        "preflight": first.to_json(),
        "range_test": {
            k: finite_or_none(v) if isinstance(v, float) else v for k, v in rates.to_json().items()
        },
        "batch": batch.to_json(),
        "noise_scale": finite_or_none(noise.samples),
        "text": text,
    }


@_bounded
def surface(
    profile: PipelineProfile, checkpoint: Path, progress: Progress, *, square: bool
) -> dict[str, Any]:
    """Slices of the loss, on validation samples."""
    bench = _Bench(profile)
    artifact(checkpoint, resolve("stage", "finetune"), "checkpoint")  # a float checkpoint, else an error
    loaded = load_reference("hwopt.checkpoints:load")(checkpoint, bench.root, profile.model.to_json())
    loaded.recipe.fits(bench.dataset.sample_shape, str(checkpoint))
    network = loaded.module
    x, y = bench.data.x_validation[:512], bench.data.y_validation[:512]
    if not len(x):
        x, y = bench.data.x[:512], bench.data.y[:512]
    rooms = load_reference("hwopt.training.surface:slice_along").__globals__
    away = rooms["random_direction"](network, profile.seed)
    slices = []
    for name, direction in (("random", away), ("float → int8", rooms["to_int8"](network))):
        slices.append(
            rooms["slice_along"](
                network, direction, [2 * p for p in _PLACES] if name != "random" else _PLACES, x, y, name
            ).to_json()
        )
        progress(f"surface: {name}")
    value, change = rooms["top_eigenvalue"](network, x, y)
    here, there = slices[0]["losses"][10], slices[1]["losses"][15]
    if here is None or there is None:
        raise StageFailedError("the loss at these weights is no number", fix="train again with a lower rate")
    found: dict[str, Any] = {
        "schema_version": 1,
        "slices": slices,
        "top_eigenvalue": finite_or_none(value),
        "top_eigenvalue_change": finite_or_none(change),
        "text": [
            f"loss           {here:.4f} at the weights, {there:.4f} with weights in int8",
            f"sharpest       Hessian eigenvalue {value:.3g} (last change {change:.1%})",
            *(f"{s['name']:14s} " + _heights(s["losses"]) for s in slices),
        ],
    }
    if square:
        other = rooms["random_direction"](network, profile.seed + 1)
        table = rooms["grid"](network, away, other, _PLACES, x[:128], y[:128])
        found["grid"] = {"places": _PLACES, "losses": [[finite_or_none(v) for v in row] for row in table]}
        found["text"] += [
            _heights([math.log(max(v or 1e9, 1e-9)) for v in row]) for row in found["grid"]["losses"]
        ]
    return found


def _heights(losses: Sequence[float | None]) -> str:
    line: str = load_reference("hwopt.core.progress:sparkline")(
        [v if v is not None else math.inf for v in losses if v is not None], 21
    )
    return line
