"""What backs an FPGA estimate: emulation, QONNX, hls4ml's C simulation, Verilog and Yosys."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from hwopt.api.fpga import fabric_of, placed
from hwopt.api.options import Options, feed_of
from hwopt.comparison import as_written, side_by_side
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError, EngineMissingError, HwoptError
from hwopt.fpga import hls, rtl
from hwopt.fpga.emulate import Circuit
from hwopt.fpga.estimate import estimate_model
from hwopt.fpga.qonnx import to_qonnx as convert
from hwopt.fpga.record import to_json
from hwopt.fpga.wiring import Wires
from hwopt.model_check import check_model

_FLOAT32 = 2.0**-20  # of the greatest output: what float32 loses in a sum


def equal(part: dict[str, Any]) -> bool:
    """Whether the emulation and the file agree; sums of more than 24 bits are rounded by the file's floats."""
    rounded = float(part["largest_difference"]) <= _FLOAT32 * float(part["largest_output"])
    return bool(part["identical"] == part["samples"] or rounded)


def _samples(path: Path, inputs: str | Path | None, samples: int) -> tuple[Circuit, npt.NDArray[np.float32]]:
    if samples < 1:
        raise ConfigError(f"{samples} samples prove nothing", fix="give at least 1")
    check_model(path)
    with placed(path):
        circuit = Circuit(path)
    feed = feed_of(path, Options(batch=circuit.shape[0] or samples), inputs)
    return circuit, np.asarray(feed[circuit.input], np.float32)


def emulate(model: str | Path, *, inputs: str | Path | None = None, samples: int = 256) -> dict[str, Any]:
    """Run a quantized model in the FPGA's own arithmetic, beside the file as written.

    Args:
        inputs: npz with the model's input; random numbers in 0…1 without it.
        samples: how many of them.
    Returns:
        JSON: samples whose outputs are bit for bit those of the file's Q/DQ arithmetic, the greatest
        difference, and samples whose greatest output is the same.
    Raises:
        ConfigError: the model is no integer arithmetic, for example because two scales meet that no shift aligns.
    """
    path = Path(model)
    circuit, x = _samples(path, inputs, samples)
    with placed(path):
        found = side_by_side(circuit.run(x)[0], as_written(path, x))
    return {
        "schema_version": 1,
        "tier": Tier.MEASURED.value,
        "model": str(path),
        "emulation": found,
        "equal": equal(found),
    }


def to_qonnx(model: str | Path, output: str | Path) -> dict[str, Any]:
    """Write a quantized ONNX file as QONNX, for FINN, hls4ml and Brevitas.

    Returns:
        JSON: what was written, and how many quantizers it has.
    """
    path = Path(model)
    check_model(path)
    with placed(path):
        made = convert(path)
    onnx.save(made, str(output))
    count = sum(node.op_type == "Quant" for node in made.graph.node)
    return {"schema_version": 1, "model": str(path), "written": str(output), "quantizers": count}


def prove(
    model: str | Path,
    *,
    target: str,
    output: str | Path | None = None,
    inputs: str | Path | None = None,
    samples: int = 256,
    io: str = "io_parallel",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Back a small network's estimate with everything that is installed here, side by side.

    The unrolled design is estimated, emulated in integers, run in hls4ml's C simulation, written as Verilog,
    simulated bit by bit and synthesized. A step whose tool is absent is skipped with what to install.

    Args:
        output: folder for QONNX, C++ and Verilog; a temporary one without it.
    Returns:
        JSON with a part each: ``estimate`` (estimated), ``emulation``, ``csim``, ``verilog`` (measured), and
        ``synthesis`` (compiled). ``proven`` says whether every part that ran is bit for bit the same.
    """
    path = Path(model)
    hardware, fabric = fabric_of(target)
    circuit, x = _samples(path, inputs, samples)
    with placed(path):
        reference = circuit.run(x)[0]
    found: dict[str, Any] = {
        "schema_version": 1,
        "model": str(path),
        "target": target,
        "device": hardware.name,
        "emulation": side_by_side(reference, as_written(path, x)),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output) if output else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "estimate": lambda: _estimate(path, fabric),
            "csim": lambda: _csim(path, x, folder, reference, io),
            "verilog": lambda: _verilog(path, x, folder, reference, hardware),
        }
        for name, part in parts.items():
            progress(f"{name} …")
            found[name] = _or_reason(part)
    verilog = found["verilog"]
    outside = [p for p in (found["csim"], verilog.get("simulation", {})) if "identical" in p]
    compared = [*outside, *([verilog["interpreter"]] if "interpreter" in verilog else [])]
    failed = [p for p in (found["csim"], verilog, *verilog.values()) if isinstance(p, dict) and "failed" in p]
    # The emulation is ours: without a tool of others beside it nothing is proven.
    found["proven"] = (
        bool(outside)
        and not failed
        and equal(found["emulation"])
        and all(p["identical"] == p["samples"] for p in compared)
    )
    found["not_proven"] = [
        {"part": name, **{k: p[k] for k in ("skipped", "failed", "fix") if k in p}}
        for name, p in (("csim", found["csim"]), ("verilog", found["verilog"]), *found["verilog"].items())
        if isinstance(p, dict) and ("skipped" in p or "failed" in p)
    ]
    return found


def _or_reason(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, or why it did not run."""
    try:
        return part()
    except EngineMissingError as error:
        return {"skipped": error.problems[0].problem, "fix": error.problems[0].fix}
    except HwoptError as error:
        return {"failed": error.problems[0].problem, "fix": error.problems[0].fix}


def _estimate(path: Path, fabric: Any) -> dict[str, Any]:
    from hwopt.core.fpga import Layout
    from hwopt.fpga.estimate import Wish

    facts = to_json(*estimate_model(path, fabric, Wish(layout=Layout.UNROLLED)))
    kept = ("tier", "fits", "cycles", "latency_ms", "resources", "notes")
    return {name: facts[name] for name in kept}


def _csim(
    path: Path, x: npt.NDArray[np.float32], folder: Path, reference: npt.NDArray[np.float64], io: str
) -> dict[str, Any]:
    done = hls.csim(path, x, folder / "hls4ml", io)
    return {
        "tier": Tier.MEASURED.value,
        "tool": f"hls4ml {done.version}",
        "types": done.types,
        **side_by_side(done.outputs, reference),
    }


def _verilog(
    path: Path,
    x: npt.NDArray[np.float32],
    folder: Path,
    reference: npt.NDArray[np.float64],
    hardware: HardwareProfile,
) -> dict[str, Any]:
    wires = Wires(path)
    project = rtl.write(wires, folder / "verilog")

    def simulation() -> dict[str, Any]:
        found = rtl.simulate(project, wires.codes(x))
        return {
            "tier": Tier.MEASURED.value,
            "tool": rtl.version("iverilog"),
            **side_by_side(found, reference),
        }

    def synthesis() -> dict[str, Any]:
        fabric = hardware.fpga
        family = fabric.yosys if fabric else None
        if fabric is None or family is None:
            raise EngineMissingError(
                f"Yosys maps to no family of {hardware.name}",
                fix="synthesize verilog/ with the vendor's tool",
            )
        counted = rtl.synthesize(project, family)
        predicted = project.predicted_lut * fabric.lut_per_lut6
        return {
            "tier": Tier.COMPILED.value,
            "tool": counted.tool,
            "family": family,
            "lut": counted.lut,
            "ff": counted.ff,
            "dsp": counted.dsp,
            "bram": counted.bram,
            "cells": dict(counted.cells),
            "over_estimate": {
                "lut": counted.lut / predicted if predicted else None,
                "ff": counted.ff / project.predicted_ff if project.predicted_ff else None,
            },
        }

    return {
        "stages": project.stages,
        "files": [file.name for file in project.files],
        "interpreter": side_by_side(wires.predict(x), reference),
        "simulation": _or_reason(simulation),
        "synthesis": _or_reason(synthesis),
    }
