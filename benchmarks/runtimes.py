"""Four networks, float and int8, in ONNX Runtime and OpenVINO, and whether ``auto`` takes the faster one.

    python -m benchmarks.runtimes --work work --mails ../shared/data/spam/spam.jsonl.gz --out docs/results/FILE.csv

Integer files are made for each runtime's own device profile and measured in both, with the float file beside them,
in one set of rounds at batch 1 and one at batch 16. Afterwards the runtime that was chosen is measured against the
other one again, with another seed and fresh processes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

import hwopt
from benchmarks import minilm, minilm_net, nets
from hwopt.engine.host import detect
from hwopt.engine.single import device
from hwopt.latency.costs import exported

RUNTIMES = ("onnxruntime", "openvino")
BATCHES = (1, 16)


def files(name: str, folder: Path, mails: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Float, int8 for ONNX Runtime, int8 for OpenVINO; and samples."""
    here = device("host-cpu")
    vnni = "avx512_vnni" in here.isa
    paths = [folder / f"{name}-{kind}.onnx" for kind in ("float", "int8-onnxruntime", "int8-openvino")]
    if name == "minilm":
        samples = minilm.tokens(mails)
        calibration = {key: value[:64] for key, value in samples.items()}
        if not paths[0].exists():
            minilm_net.export(paths[0])
    else:
        net = nets.load(name, folder)
        samples, calibration = {"input": net.test.numpy()}, {"input": net.calibration.numpy()[:64]}
        paths[0].write_bytes(exported(net.module, net.shape).SerializeToString())
    for path, chosen in zip(
        paths[1:], (here.name, "openvino-avx512-vnni" if vnni else "openvino-avx2"), strict=True
    ):
        if not path.exists():
            hwopt.quantize_onnx(paths[0], path, hardware=chosen, calibration=calibration)
    return paths, {key: value[: max(BATCHES)] for key, value in samples.items()}


def rows(name: str, paths: list[Path], samples: dict[str, np.ndarray], batch: int) -> list[dict[str, Any]]:
    options = {"inputs": {k: v[:batch] for k, v in samples.items()}, "batch": batch, "budget_seconds": 5.0}
    found = hwopt.benchmark(paths, runtimes=RUNTIMES, **options)
    chosen = {Path(c["model"]).name: c for c in found["faster_runtime"]}
    result = []
    for path in paths:
        again = hwopt.benchmark([path], runtimes=RUNTIMES, seed=1, **options)
        (second,) = again["faster_runtime"]
        best = chosen[path.name]["runtime"]
        other = next(r for r in RUNTIMES if r != best)
        ratio = second["speed_to_it"]
        # The chosen one is worse only where the other's whole interval says so.
        worse = second["runtime"] != best and ratio[best]["high"] < 1
        for row in (r for r in found["results"] if r["model"] == str(path)):
            speed = row["speedup"]
            result.append(
                {
                    "network": name,
                    "batch": batch,
                    "file": path.stem.removeprefix(f"{name}-"),
                    "runtime": row["runtime"],
                    "p50_ms": f"{row['latency_ms']['p50']:.4g}",
                    "over_float_in_it": f"{speed['estimate']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]",
                    "integer": f"{row['integer_share']:.0%}",
                    "memory_mb": f"{row['footprint']['added_bytes'] / 1e6:.0f}",
                    "load_ms": f"{row['footprint']['load_seconds'] * 1e3:.0f}",
                    "auto": best if row["runtime"] == best else "",
                    "of_its_speed_the_other": f"{chosen[path.name]['speed_to_it'][other]['estimate']:.2f}",
                    "auto_is_the_slower_one": worse,
                    "because": "; ".join(c["cause"] for c in row.get("no_faster_because", [])),
                }
            )
            print(result[-1], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="cnn.safetensors and mobilenet.safetensors")
    parser.add_argument("--mails", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    table: list[dict[str, Any]] = []
    for name in ("cnn", "mobilenet", "minilm", "efficientnet"):
        paths, samples = files(name, given.work, given.mails)
        for batch in BATCHES:
            table += rows(name, paths, samples, batch)
    with given.out.open("w", newline="") as file:
        file.write(f"# {detect().cpu}\n")
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
