"""FPGA designs from a model's file: estimated, emulated, handed over, synthesized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwopt.config import hardware as profiles
from hwopt.core.fpga import Flow, FpgaFabric, Layout
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.engine.single import device
from hwopt.errors import ConfigError, HwoptError
from hwopt.fpga.design import Design
from hwopt.fpga.estimate import Wish, estimate, estimate_model, narrowed, read_layers, with_bits
from hwopt.fpga.flows import Fold, words
from hwopt.fpga.record import to_json
from hwopt.fpga.search import Found
from hwopt.layer_table import Layer
from hwopt.model_check import check_model


def fabric_of(target: str) -> tuple[HardwareProfile, FpgaFabric]:
    """A device that is an FPGA; ConfigError for another."""
    hardware = device(target)
    if hardware.fpga is None:
        known = [name for name in profiles.names() if profiles.shipped(name).fpga is not None]
        raise ConfigError(f"{hardware.name} is no FPGA", fix=f"choose one of {', '.join(known)}")
    return hardware, hardware.fpga


def wish_of(
    layout: str = "streaming",
    flow: str = "finn",
    frames_per_second: float | None = None,
    folding: Mapping[str, Mapping[str, int]] | None = None,
    overlay: str | None = None,
    cores: int | None = None,
    clock_mhz: float | None = None,
) -> Wish:
    """What kind of design is asked for, from plain values.

    Raises:
        ConfigError: a key of a folding that no flow knows.
    """
    folds = {}
    known = [*sorted(words(Flow(flow))), "lanes"] if flow in set(Flow) else []
    for name, given in (folding or {}).items():
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(
                f"the folding of {name} has {unknown[0]!r}", fix=f"its keys are {', '.join(known)}"
            )
        folds[name] = replace(Fold(), **dict[str, Any](given))
    if layout not in set(Layout) or flow not in set(Flow):
        raise ConfigError(
            f"no layout {layout!r} or no flow {flow!r}", fix=f"{', '.join(Layout)}; {', '.join(Flow)}"
        )
    return Wish(
        layout=Layout(layout),
        flow=Flow(flow),
        frames_per_second=frames_per_second,
        folds=folds,
        overlay=overlay,
        cores=cores,
        clock_mhz=clock_mhz,
    )


def estimate_design(
    model: str | Path,
    *,
    target: str,
    bits: tuple[int, int] | None = None,
    keep: float = 1.0,
    **wishes: Any,
) -> dict[str, Any]:
    """Cycles, resources, energy and fit of a model on an FPGA; nothing is built.

    Args:
        model: a quantized ONNX file, or a float one with ``bits``.
        bits: weight and activation bits that the layers would be quantized to, instead of what the file says.
        keep: share of the inner channels that pruning would leave.
        wishes: of ``wish_of``: layout, flow, frames_per_second, folding, overlay, cores, clock_mhz.
    Returns:
        JSON, tier ``estimated``; every time and resource with the interval that published designs gave.
    Raises:
        StageFailedError: an operator has no circuit, or a layer is float.
        ConfigError: the target is no FPGA, bits are out of range, or a folding is illegal.
    """
    hardware, fabric = fabric_of(target)
    path = Path(model)
    check_model(path)
    wish = wish_of(**wishes)
    with placed(path):
        design, found = _design(path, fabric, wish, bits, keep, hardware.pruning.channel_multiple)
    return {
        "schema_version": 1,
        "model": str(path),
        "target": target,
        "device": hardware.name,
        "bits": list(bits) if bits else None,
        "keep": keep,
        **to_json(design, found),
    }


@contextmanager
def placed(path: Path) -> Iterator[None]:
    """Errors about a model name its file."""
    try:
        yield
    except HwoptError as error:
        raise error.at(str(path)) from None


def _design(
    path: Path, fabric: FpgaFabric, wish: Wish, bits: tuple[int, int] | None, keep: float, multiple: int
) -> tuple[Design, Found | None]:
    if bits is None and keep == 1.0:
        return estimate_model(path, fabric, wish)
    return estimate(_varied(read_layers(path), bits, keep, multiple), fabric, wish)


def _varied(layers: list[Layer], bits: tuple[int, int] | None, keep: float, multiple: int) -> list[Layer]:
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is {keep:g}", fix="a share of the channels, above 0 and up to 1")
    if keep < 1:
        layers = narrowed(layers, keep, multiple)
    return with_bits(layers, *bits) if bits else layers


def explore(
    model: str | Path,
    *,
    target: str,
    bits: list[tuple[int, int]],
    keep: list[float],
    **wishes: Any,
) -> dict[str, Any]:
    """Every combination of bits and pruning, each folded as well as the same constraint allows.

    What accuracy each would have must be trained for; this says which combinations are worth it.

    Returns:
        JSON with a row a combination; ``front`` marks those that no other beats in latency, bits and width.
    """
    hardware, fabric = fabric_of(target)
    path = Path(model)
    check_model(path)
    wish = wish_of(**wishes)
    with placed(path):
        layers = read_layers(path)
    rows: list[dict[str, Any]] = []
    for pair in dict.fromkeys(bits):
        for share in dict.fromkeys(keep):
            with placed(path):
                varied = _varied(layers, pair, share, hardware.pruning.channel_multiple)
                design, found = estimate(varied, fabric, wish)
            facts = to_json(design, found)
            kept = (
                "fits",
                "short",
                "missed",
                "not_judged",
                "latency_ms",
                "interval_cycles",
                "frames_per_second",
                "resources",
            )
            rows.append(
                {
                    "weight_bits": pair[0],
                    "activation_bits": pair[1],
                    "keep": share,
                    "macs": sum(layer.macs for layer in varied),
                    **{name: facts[name] for name in kept},
                }
            )
    for row in rows:
        row["front"] = bool(row["fits"]) and not any(_beats(other, row) for other in rows)
    return {
        "schema_version": 1,
        "tier": Tier.ESTIMATED.value,
        "model": str(path),
        "target": target,
        "device": hardware.name,
        "rows": rows,
    }


def _beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Faster with as many bits and channels, or as fast with more of them."""

    def marks(row: Mapping[str, Any]) -> tuple[float, ...]:
        return (row["latency_ms"]["p50"], -row["weight_bits"], -row["activation_bits"], -row["keep"])

    mine, theirs = marks(a), marks(b)
    return bool(a["fits"]) and mine != theirs and all(x <= y for x, y in zip(mine, theirs, strict=True))
