"""Signal-to-noise ratio of quantized models against the float one, for a look at other instruction sets.

    valgrind --tool=none python -m benchmarks.saturation float.onnx samples.npz a.onnx b.onnx

Valgrind gives the program a CPU with AVX2 and without AVX-512 and VNNI, so ONNX Runtime takes the kernels that add pairs
of u8 x s8 products into int16. It says nothing of speed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def outputs(path: str, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def main() -> None:
    source, samples, *models = sys.argv[1:]
    with np.load(samples, allow_pickle=False) as archive:
        x = next(iter(archive.values()))[:200]
    exact = outputs(source, x)
    for model in models:
        given = outputs(model, x)
        decibels = 10 * np.log10((exact**2).mean() / ((exact - given) ** 2).mean())
        print(
            f"{Path(model).name}: {decibels:.1f} dB, agreement {np.mean(exact.argmax(1) == given.argmax(1)):.4f}"
        )


if __name__ == "__main__":
    main()
