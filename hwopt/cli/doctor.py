"""``hwopt doctor``."""

from __future__ import annotations

import contextlib
import shutil
from importlib import metadata
from importlib.util import find_spec
from typing import Final

import click

from hwopt.cli.console import json_option, print_json
from hwopt.core.advisories import open_in
from hwopt.core.backend import BackendSpec
from hwopt.core.canonical import JSON
from hwopt.engine import host as this_host
from hwopt.engine.prepare import host_profile, probe
from hwopt.engine.record import environment
from hwopt.measuring.preflight import preflight
from hwopt.plugins import resolve, table

_EXTRAS: Final = (
    ("LoadGen", "mlperf_loadgen", "loadgen", "percentiles beside ours"),
    ("NVML", "pynvml", "gpu", "clocks and energy of NVIDIA GPUs"),
    ("QONNX", "qonnx", "fpga", "what hls4ml reads"),
    ("hls4ml", "hls4ml", "fpga", "C simulation of FPGA designs"),
    ("da4ml", "da4ml", "fpga", "adder graphs and Verilog of unrolled designs"),
)
_TOOLS: Final = (
    ("g++", "g++", "hls4ml's C simulation"),
    ("iverilog", "iverilog", "simulation of Verilog"),
    ("yosys", "yosys", "synthesis of Verilog"),
)


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """This machine, every runtime, what is missing and how to get it; exit 4 if a core library is."""
    host, device, facts = this_host.detect(), host_profile(), environment()
    backends: list[dict[str, JSON]] = []
    for name in table("backend"):
        spec: BackendSpec = resolve("backend", name)
        state = probe(name)
        backends.append(
            {
                "name": name,
                "title": spec.title,
                "available": state.available,
                "version": state.version,
                "reason": state.reason,
                "fix": state.fix,
            }
        )
    missing = [
        name for name in ("torch", "onnx", "onnxruntime", "onnxscript", "numpy") if not _installed(name)
    ]
    looked, weak = preflight(), open_in(facts["libraries"])
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "host": host.to_json(),
                "preflight": looked.to_json(),
                "host_profile": device.name if device else None,
                "backends": list[JSON](backends),
                "extras": {name: find_spec(package) is not None for name, package, _, _ in _EXTRAS},
                "tools": {command: shutil.which(command) is not None for command, _, _ in _TOOLS},
                "libraries": facts["libraries"],
                "weaknesses": [
                    {
                        "library": a.library,
                        "name": a.name,
                        "what": a.what,
                        "fixed": a.fixed,
                        "source": a.source,
                    }
                    for a in weak
                ],
                "missing": list[JSON](missing),
            }
        )
    else:
        click.echo(f"machine   {host.cpu}, {host.cores} usable cores, {host.system}")
        click.echo(f"features  {', '.join(sorted(host.isa)) or 'none known'}")
        if device:
            scheme = device.quantization
            click.echo(f"profile   {device.name}: {scheme.why}")
            click.echo(
                f"          weights {scheme.weights.dtype} {list(scheme.weights.codes)}, "
                f"activations {scheme.activations.dtype}"
            )
        for backend in backends:
            if backend["available"]:
                click.echo(f"runtime   {backend['title']} {backend['version'] or ''}: ready")
            else:
                click.echo(f"runtime   {backend['title']}: not here: {backend['reason']}")
                click.echo(f"          fix: {backend['fix']}")
        for name, package, extra, what in _EXTRAS:
            ready = "ready" if find_spec(package) else f"not here: pip install 'hwopt[{extra}]'"
            click.echo(f"extra     {name}, {what}: {ready}")
        for command, package, what in _TOOLS:
            ready = "ready" if shutil.which(command) else f"not here: apt install {package}"
            click.echo(f"tool      {command}, {what}: {ready}")
        for warning in looked.warnings():
            click.echo(f"measuring {warning}")
        for name, version in facts["libraries"].items():
            click.echo(f"library   {name} {version or 'missing: pip install ' + name}")
        for a in weak:
            click.echo(f"weakness  {a.library}: {a.name}, {a.what}; mended in {a.fixed} ({a.source})")
    return 4 if missing else 0


def _installed(name: str) -> bool:
    """Under its own name, or as the build for GPUs."""
    for one in (name, f"{name}-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(one)
            return True
    return False
