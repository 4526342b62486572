"""Static int8 side by side: hwopt, ONNX Runtime's quantizer by hand, NNCF, Neural Compressor, Olive.

    python -m benchmarks.ptq --work DIR --out docs/results/FILE.csv [--nncf PYTHON] [--olive PYTHON] [--inc PYTHON]

Networks: the MNIST CNN and MobileNetV2 of ``benchmarks/profiles`` (``DIR/cnn.safetensors`` and
``DIR/mobilenet.safetensors``, written by ``hwopt train``), and EfficientNet-Lite0 with its own weights on crops of
scikit-learn's two sample photographs. Every file is measured against the float one in the same process, interleaved:
the latency is the median of the ratios of neighbouring runs, batch 1, one thread. SQNR and agreement are those of the
logits on held-out samples, as deployed. Each other tool runs in the virtual environment whose Python is given.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import nets
from hwopt.backends.onnxruntime.runtime import load as load_runtime
from hwopt.config.hardware import shipped
from hwopt.core.backend import Recipe
from hwopt.engine.host import detect
from hwopt.engine.prepare import host_profile
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import AdaRoundSettings, PtqSettings

OTHERS = Path(__file__).parent / "others"
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger")
HEADINGS = (
    "network",
    "tool",
    "sqnr_db",
    "agreement",
    "accuracy",
    "latency_ratio",
    "integer_convs",
    "convs",
    "seconds",
)
ROUNDS = 60


def hwopt_file(net: nets.Net, device: str, path: Path, settings: PtqSettings) -> None:
    made = quantize_module(net.module, net.shape, shipped(device).quantization, net.calibration, settings)
    export_onnx(deployed(made.graph), net.shape, path, {})


def other(python: str, script: str, *arguments: str) -> str | None:
    """Run another tool; its last line where it failed."""
    path = os.pathsep.join([str(OTHERS.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "CI": "true",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": path,
    }
    done = subprocess.run(
        [python, str(OTHERS / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1][:200]


def outputs(runtime: Any, x: np.ndarray) -> np.ndarray:
    (name,) = runtime.inputs()
    return np.concatenate([runtime.run({name: x[i : i + 1]})[0] for i in range(len(x))])


def ratio(runtime: Any, baseline: Any, x: np.ndarray) -> float:
    """Median over rounds of neighbouring runs, each side first in turn."""
    feeds = {id(side): {next(iter(side.inputs())): x[:1]} for side in (runtime, baseline)}
    found = []
    for index in range(ROUNDS + 5):
        times = {}
        for side in ("a", "b") if index % 2 else ("b", "a"):
            start = time.perf_counter()
            for _ in range(nets.REPEATS if x[0].size < 5000 else 1):
                chosen = runtime if side == "a" else baseline
                chosen.run(feeds[id(chosen)])
            times[side] = time.perf_counter() - start
        if index >= 5:
            found.append(times["a"] / times["b"])
    return float(np.median(found))


def measure(
    net: nets.Net, tool: str, path: Path, baseline: Any, exact: np.ndarray, seconds: float
) -> dict[str, Any]:
    runtime = load_runtime(path, Recipe(), shipped("generic-cpu"))
    x = net.test.numpy()
    given = outputs(runtime, x)
    convolutions = [node for node in runtime.executed() if node.op in CONVOLUTIONS]
    return {
        "network": net.name,
        "tool": tool,
        "sqnr_db": f"{sqnr_db(exact, given):.1f}",
        "agreement": f"{np.mean(given.argmax(1) == exact.argmax(1)):.4f}",
        "accuracy": "" if net.labels is None else f"{np.mean(given.argmax(1) == net.labels):.4f}",
        "latency_ratio": f"{ratio(runtime, baseline, x):.3f}",
        "integer_convs": sum(node.integer for node in convolutions),
        "convs": len(convolutions),
        "seconds": f"{seconds:.0f}",
    }


def versions(
    net: nets.Net, folder: Path, arguments: argparse.Namespace
) -> list[tuple[str, Path, float, str | None]]:
    """Every tool's file: name, path, seconds, and why it is not there."""
    source, calibration = folder / "float.onnx", folder / "calibration.npz"
    export_onnx(to_graph(net.module, net.shape), net.shape, source, {})
    np.savez(calibration, input=net.calibration.numpy())
    found: list[tuple[str, Path, float, str | None]] = [("float", source, 0.0, None)]
    host = host_profile()
    plans: list[tuple[str, str, PtqSettings]] = [("hwopt x86-avx2", "x86-avx2", PtqSettings())]
    if host is not None and host.name != "x86-avx2":
        plans.append((f"hwopt {host.name}", host.name, PtqSettings()))
    rounded = PtqSettings(adaround=AdaRoundSettings(iterations=arguments.adaround))
    if arguments.adaround and net.name != "efficientnet-lite0":
        plans.append(("hwopt x86-avx2, AdaRound", "x86-avx2", rounded))
    for name, device, settings in plans:
        path, start = folder / f"{len(found)}.onnx", time.perf_counter()
        hwopt_file(net, device, path, settings)
        found.append((name, path, time.perf_counter() - start, None))
    common = (str(source), str(calibration))
    tools: list[tuple[str, str | None, str, Sequence[str]]] = [
        ("ONNX Runtime u8s8 per channel", sys.executable, "ort_onnx.py", ["--per-channel"]),
        ("ONNX Runtime, reduce_range", sys.executable, "ort_onnx.py", ["--per-channel", "--reduce-range"]),
        ("ONNX Runtime, defaults (s8s8)", sys.executable, "ort_onnx.py", ["--activations", "int8"]),
        ("NNCF", arguments.nncf, "nncf_onnx.py", []),
        ("Olive", arguments.olive, "olive_onnx.py", []),
        ("Olive, u8, reduce_range", arguments.olive, "olive_onnx.py", ["--activations", "uint8", "--per-channel", "--reduce-range"]),
    ]  # fmt: skip
    for name, python, script, options in tools:
        if python is None:
            continue
        path, start = folder / f"{len(found)}.onnx", time.perf_counter()
        failure = other(python, script, *common, str(path), *options)
        found.append((name, path, time.perf_counter() - start, failure))
    if arguments.inc is not None:
        path, start = folder / f"{len(found)}.onnx", time.perf_counter()
        os.environ["BENCHMARK_WORK"] = str(arguments.work)
        failure = other(
            arguments.inc, "inc_torch.py", f"benchmarks.nets:{net.factory}", str(calibration), str(path)
        )
        found.append(("Neural Compressor (PT2E)", path, time.perf_counter() - start, failure))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=["cnn", "mobilenet", "efficientnet"])
    parser.add_argument("--adaround", type=int, default=300)
    for tool in ("nncf", "olive", "inc"):
        parser.add_argument(f"--{tool}")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        net = nets.load(name, arguments.work)
        with tempfile.TemporaryDirectory() as folder:
            files = versions(net, Path(folder), arguments)
            baseline = load_runtime(files[0][1], Recipe(), shipped("generic-cpu"))
            exact = outputs(baseline, net.test.numpy())
            for tool, path, seconds, failure in files:
                if failure is None:
                    rows.append(measure(net, tool, path, baseline, exact, seconds))
                else:
                    rows.append({"network": net.name, "tool": f"{tool}: {failure}"})
                print(rows[-1], flush=True)
    with arguments.out.open("w", newline="") as file:
        file.write(
            f"# {detect().cpu}, {', '.join(sorted(i for i in detect().isa if 'vnni' in i or i == 'avx2'))}\n"
        )
        writer = csv.DictWriter(file, HEADINGS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
