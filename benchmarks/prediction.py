"""Predicted against measured: twelve small networks in float and in integer, on this machine.

    hwopt hardware calibrate -o work/my-cpu.yaml
    python -m benchmarks.prediction --profile work/my-cpu.yaml --out docs/results/prediction-HOST.csv

None of the twelve is in the micro-suite that the profile was calibrated with. Times are multiples of the reference
workload, measured in the same rounds; ratios are to the first network in float.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy.stats import kendalltau

from hwopt.config.hardware import find
from hwopt.core.choices import Choice
from hwopt.engine.host import detect
from hwopt.latency.costs import exported
from hwopt.latency.measure import Candidate, Effort, measure_all
from hwopt.models.build import build_model
from hwopt.prediction.predict import predict
from hwopt.prediction.suite import quantized
from hwopt.prediction.work import kernels

NETS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "cnn 16": ("cnn", {"width": 16}, (1, 28, 28)),
    "cnn 32": ("cnn", {"width": 32}, (1, 28, 28)),
    "cnn 12, 32x32": ("cnn", {"width": 12}, (3, 32, 32)),
    "mlp 256-128": ("mlp", {}, (784,)),
    "mlp 512-512": ("mlp", {"hidden": (512, 512)}, (784,)),
    "mobilenet 0.5": ("mobilenet_v2", {"width": 0.5}, (1, 28, 28)),
    "mobilenet 1.0": ("mobilenet_v2", {"width": 1.0}, (1, 28, 28)),
    "mobilenet 0.75, 48x48": ("mobilenet_v2", {"width": 0.75}, (3, 48, 48)),
    "resnet 8": ("resnet", {"depth": 8}, (3, 32, 32)),
    "resnet 20": ("resnet", {"depth": 20}, (3, 32, 32)),
    "resnet 14, width 32": ("resnet", {"depth": 14, "width": 32}, (3, 32, 32)),
    "efficientnet-lite0, 64x64": ("efficientnet_lite0", {"pretrained": False}, (3, 64, 64)),
}


def network(name: str) -> onnx.ModelProto:
    kind, options, shape = NETS[name]
    torch.manual_seed(0)
    module = build_model(Choice(name=kind, factory=None, options=options), shape, 10, None).eval()
    return exported(module, shape)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    hardware = find(str(given.profile), Path.cwd())
    calibration = hardware.calibration
    if calibration is None:
        parser.error(f"{given.profile} is not calibrated")
    models: list[tuple[str, str, onnx.ModelProto]] = []
    for name in NETS:
        proto = network(name)
        models += [(name, "fp32", proto), (name, "int8", quantized(proto, hardware.quantization))]
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for index, (name, _, proto) in enumerate(models):
            path = Path(folder) / f"{index}.onnx"
            path.write_bytes(proto.SerializeToString())
            x = np.random.default_rng(0).random((1, *NETS[name][2]), dtype=np.float32)
            feed = {proto.graph.input[0].name: x}
            sides.append(Candidate(model=path, runtime=hardware.runtimes[0], hardware=hardware, feed=feed))
        effort = Effort(budget_seconds=20, half_width=1e-9, samples=0)
        rounds = measure_all(sides, effort).rounds
    last = len(sides)
    rows = []
    for index, (name, dtype, proto) in enumerate(models):
        multiple = rounds.compare(last, index).interval().estimate
        prediction = predict(kernels(proto), hardware)
        rows.append(
            {
                "network": name,
                "type": dtype,
                "measured_ms": multiple * calibration.reference_ms,
                "predicted_ms": prediction.seconds.estimate * 1e3,
                "low_ms": prediction.seconds.low * 1e3,
                "high_ms": prediction.seconds.high * 1e3,
            }
        )
    with given.out.open("w", newline="") as file:
        file.write(f"# {detect().cpu}, {calibration.runtime}, spread {calibration.spread}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows])
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    measured, predicted = (np.array([r[k] for r in rows]) for k in ("measured_ms", "predicted_ms"))
    inside = [r["low_ms"] <= r["measured_ms"] <= r["high_ms"] for r in rows]
    to_first = [
        abs(log(p / predicted[0] / (m / measured[0])))
        for m, p in zip(measured[1:], predicted[1:], strict=True)
    ]
    pairs = [(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)]
    speedups = [
        abs(log((a["predicted_ms"] / b["predicted_ms"]) / (a["measured_ms"] / b["measured_ms"])))
        for a, b in pairs
    ]
    for row in rows:
        print(
            f"{row['network']:28s} {row['type']}  {row['measured_ms']:.4f}  {row['predicted_ms']:.4f}"
            f"  {row['predicted_ms'] / row['measured_ms']:.2f}"
        )
    print(f"median error of a time: {exp(float(np.median(abs(np.log(predicted / measured))))) - 1:.1%}")
    print(f"median error of the ratio to the first: {exp(float(np.median(to_first))) - 1:.1%}")
    print(f"median error of int8 over fp32: {exp(float(np.median(speedups))) - 1:.1%}")
    print(f"Kendall tau: {kendalltau(measured, predicted).statistic:.3f}")
    print(f"inside the interval: {sum(inside)} of {len(inside)}")


if __name__ == "__main__":
    main()
