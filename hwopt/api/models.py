"""Quantize, prune and verify without the pipeline."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwopt import checkpoints
from hwopt.comparison import Call
from hwopt.comparison import compare as compare_outputs
from hwopt.core.artifact import Kind
from hwopt.core.backend import BackendSpec, Optimization, Recipe
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.data.feeds import feeds, read_feeds
from hwopt.data.npz import read_arrays
from hwopt.engine.prepare import probe
from hwopt.engine.single import device, runtime_of
from hwopt.errors import ConfigError, HwoptError
from hwopt.latency.bench import Bench
from hwopt.model_check import check_model
from hwopt.plugins import load_reference, resolve
from hwopt.pruning.cut import full_widths
from hwopt.pruning.widths import uniform
from hwopt.quantization.onnx_export import write
from hwopt.quantization.onnx_net import read as read_onnx
from hwopt.quantization.onnx_net import samples_of, signature
from hwopt.quantization.onnx_ptq import quantize_onnx as quantize_model
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import PtqSettings
from hwopt.slimming import Slimmer
from hwopt.stages.prune.spec import PruneConfig
from hwopt.stages.quantize.spec import QuantizeConfig, check, check_input, effective_scheme
from hwopt.store.atomic import copy_file


def quantize(
    model: nn.Module, *, hardware: str, calibration: Tensor, settings: PtqSettings | None = None
) -> fx.GraphModule:
    """The fake-quantized twin of ``model`` under a device's scheme, calibrated: PTQ. Train it on for QAT.

    Args:
        model: a float module with one input, batch first; it is not changed.
        hardware: name of a hardware profile, ``host-cpu``, or the path of a YAML file.
        calibration: samples, batch first.
        settings: observer, equalization, learned rounding, mixed precision, rules for single layers.
    """
    if len(calibration) == 0:
        raise ConfigError("the calibration set is empty", fix="give at least one sample")
    if not bool(torch.isfinite(calibration).all()):
        raise ConfigError("the calibration set holds NaN or infinity", fix="remove those samples")
    scheme = device(hardware).quantization
    return quantize_module(model, tuple(calibration.shape[1:]), scheme, calibration, settings).graph


def prune(
    model: nn.Module,
    *,
    hardware: str,
    samples: Tensor,
    labels: Tensor | None = None,
    ratio: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    importance: str = "l2",
    batch: int = 1,
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of ``model`` with fewer channels, and what was cut; train it on to win accuracy back.

    Args:
        model: a float module with one input, batch first; it is not changed.
        hardware: name of a hardware profile, ``host-cpu``, or the path of a YAML file: widths follow it.
        samples: of the training data, batch first; batch-norm statistics are estimated anew from them.
        labels: of the samples; importance taylor, fisher and hessian need them.
        ratio, macs, latency: exactly one: share of the channels to remove, or share of the
            multiply-accumulates or of the latency at ``batch`` to keep, the latter measured on this machine.
    Returns:
        the network, and JSON with widths before and after, groups that cannot be cut with the reasons, and
        the goal with what was predicted and reached.
    """
    config = PruneConfig(ratio=ratio, macs=macs, latency=latency, importance=importance)  # type: ignore[arg-type]
    profile = device(hardware)
    bench = None
    if latency is not None:
        sample = samples[:batch].numpy()
        bench = Bench(runtime=runtime_of(profile), hardware=profile, sample=sample)
    slimmer = Slimmer(
        module=copy.deepcopy(model),
        sample_shape=tuple(samples.shape[1:]),
        rules=profile.pruning,
        samples=samples,
        labels=labels if labels is not None else torch.zeros(0, dtype=torch.int64),
        bench=bench,
    )
    slimmer.open_groups()
    first = full_widths(slimmer.structure)
    scores = slimmer.scores(config.importance)
    facts: dict[str, Any] = {"frozen": dict(slimmer.structure.frozen)}
    if ratio is not None:
        widths = uniform(slimmer.structure, 1 - ratio, slimmer.rules, first)
    else:
        unit, tier = ("macs", Tier.ESTIMATED) if macs is not None else ("latency", Tier.MEASURED)
        solution, reached = slimmer.towards(float(macs or latency or 0), unit, tier, scores)
        widths, facts["pruning_goal"] = solution.widths, reached.to_json()
    slimmer.cut_to(widths, scores)
    facts["cuts"] = [{"layer": name, "before": first[name], "after": widths[name]} for name in first]
    return slimmer.module, facts


def quantize_onnx(
    model: str | Path,
    output: str | Path,
    *,
    hardware: str,
    calibration: str | Path | Mapping[str, Array] | None = None,
    config: QuantizeConfig | None = None,
    fix: Mapping[str, int | float] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Quantize a float ONNX model that has no torch source, and write it whole or not at all.

    Args:
        hardware: name of a hardware profile, ``host-cpu``, or the path of a YAML file.
        calibration: arrays by input name, or an npz archive of them (see ``hwopt.data.feeds``); needed for
            static quantization only.
        config: method, types, observer, rules; by default static int8 under the device's scheme.
        fix: inputs that always hold one value; they stop being inputs.
    Returns:
        JSON with the table of decisions and what was tried.
    """
    source, target = Path(model), Path(output)
    for given in (source, calibration):
        if isinstance(given, str | Path) and Path(given).resolve() == target.resolve():
            raise ConfigError(
                "the output would overwrite the input", where=str(target), fix="choose another -o"
            )
    config = config or QuantizeConfig()
    device_profile = device(hardware)
    problems = [*check(config, device_profile), *check_input(config, Kind.ONNX)]
    if problems:
        raise ConfigError(problems[0][0], fix=problems[0][1])
    check_model(source)
    read = read_onnx(source, fix)
    if not needed_samples(config) and calibration is not None:
        raise ConfigError(
            f"method {config.method} needs no samples, so the calibration set would be ignored",
            fix="leave it out",
        )
    batches = _calibration(read, calibration, config) if needed_samples(config) else []
    try:
        made = quantize_model(
            read,
            effective_scheme(config, device_profile),
            batches,
            config.ptq_settings(),
            progress=progress,
        )
    except HwoptError as error:
        raise error.at(str(source)) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(made.model, path, {"hwopt.scheme": device_profile.name})
        _loads(path, device_profile)
        copy_file(path, target)
    return {
        "schema_version": 1,
        "output": str(target),
        "device": device_profile.name,
        "file_bytes": target.stat().st_size,
        "source_bytes": source.stat().st_size,
        "decisions": [decision.to_json() for decision in made.table.decisions],
        **made.facts,
    }


def needed_samples(config: QuantizeConfig) -> bool:
    """Whether the settings measure anything on samples."""
    return config.method == "ptq" or config.mixed is not None or config.smooth is not None


def _calibration(
    model: Any, given: str | Path | Mapping[str, Array] | None, config: QuantizeConfig
) -> list[dict[str, Array]]:
    if given is None:
        raise ConfigError(
            "static quantization, SmoothQuant and mixed precision need samples",
            fix="give --calibration FILE.npz, or use method dynamic or weight_only without them",
        )
    shapes, dtypes = signature(model)
    if isinstance(given, Mapping):
        calls = feeds(given, shapes, dtypes, where=None)
    else:
        calls = read_feeds(Path(given), shapes, dtypes)
    kept: list[dict[str, Array]] = []
    count = 0
    for call in calls:
        if count >= config.calibration_samples:
            break
        kept.append(call)
        count += samples_of(call)
    return kept


def _loads(path: Path, hardware: HardwareProfile) -> None:
    """A model that a runtime of the device cannot load is found before the file is there."""
    for name in hardware.runtimes:
        backend: BackendSpec = resolve("backend", name)
        if DeviceKind.CPU in backend.kinds and probe(name).available:
            load_reference(backend.load)(path, Recipe(), hardware).close()


def verify(
    model: str | Path,
    *,
    against: str | Path,
    inputs: str | Path | Mapping[str, Array],
    target: str = "host-cpu",
    fix: Mapping[str, int | float] | None = None,
    own_model: Mapping[str, Any] | None = None,
    import_root: Path | None = None,
) -> dict[str, Any]:
    """Whether a deployed model computes what its reference does, and in integer where it asks for it.

    Args:
        model: the ONNX file as deployed.
        against: a checkpoint of hwopt (its torch network) or an ONNX file (executed as written).
        inputs: arrays by input name, or an npz archive of them.
        fix: inputs of the reference that always hold one value, as given to ``quantize_onnx``.
        own_model: the profile's model section, for checkpoints of the user's own networks.
    Returns:
        JSON with agreement, signal-to-noise ratio, worst samples, the precision of every node, and
        ``asked_but_float``: operators that the file asks to run in integer and the runtime runs in float.
    """
    path, reference = Path(model), Path(against)
    check_model(path)
    if not reference.is_file():
        raise ConfigError("no such file", where=str(reference))
    hardware = device(target)
    runtime_name = runtime_of(hardware)
    backend: BackendSpec = resolve("backend", runtime_name)
    runtime = load_reference(backend.load)(path, Recipe(), hardware)
    try:
        shapes, dtypes = runtime.inputs(), runtime.dtypes()
        where = None if isinstance(inputs, Mapping) else str(inputs)
        arrays = dict(inputs) if isinstance(inputs, Mapping) else read_arrays(Path(inputs))
        calls = feeds(arrays, shapes, dtypes, where=where)
        call = _reference(reference, fix or {}, own_model, import_root)
        result = compare_outputs(path, runtime, call, calls)
    finally:
        runtime.close()
    return {
        "schema_version": 1,
        "tier": Tier.MEASURED.value,
        "model": str(path),
        "against": str(reference),
        "target": target,
        "device": hardware.name,
        "runtime": runtime_name,
        **result.to_json(),
    }


def _reference(
    path: Path,
    fix: Mapping[str, int | float],
    own_model: Mapping[str, Any] | None,
    import_root: Path | None,
) -> Call:
    if not checkpoints.is_onnx(path):
        module = checkpoints.load(path, import_root, own_model).module.eval()

        def torch_call(given: Mapping[str, Array]) -> Sequence[Array]:
            if len(given) != 1:
                raise ConfigError(f"a checkpoint takes one input, the model {len(given)}", where=str(path))
            with torch.no_grad():
                (value,) = given.values()
                output: Array = module(torch.from_numpy(np.ascontiguousarray(value))).numpy()
            return [output]

        return torch_call
    check_model(path)
    backend: BackendSpec = resolve("backend", "onnxruntime")
    recipe = Recipe(optimization=Optimization.NONE)
    runtime = load_reference(backend.load)(path, recipe, device("generic-cpu"))
    dtypes = runtime.dtypes()
    names = set(runtime.inputs())
    unknown = sorted(set(fix) - names)
    if unknown:
        raise ConfigError(
            f"the reference has no input {unknown[0]!r}",
            where=str(path),
            fix=f"its inputs are {', '.join(sorted(names))}",
        )
    shapes = runtime.inputs()
    fixed = {n: np.full([size or 1 for size in shapes[n]], v, dtypes[n]) for n, v in fix.items()}

    def onnx_call(given: Mapping[str, Array]) -> Sequence[Array]:
        missing = sorted(names - set(given) - set(fixed))
        if missing:
            raise ConfigError(
                f"the reference has an input {missing[0]!r} that the model has not",
                where=str(path),
                fix=f"give its value with --fix {missing[0]}=NUMBER",
            )
        try:
            outputs: list[Array] = runtime.run({**{k: v for k, v in given.items() if k in names}, **fixed})
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise ConfigError(
                f"the samples do not fit the reference: {str(error).splitlines()[0]}", where=str(path)
            ) from error
        return outputs

    return onnx_call
