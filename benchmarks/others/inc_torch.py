"""Quantize a torch module with Neural Compressor 3.10 and try to write ONNX:
python quantize_inc_torch.py MODULE:FUNCTION CALIBRATION.npz OUT.onnx [--dynamic] [--quantize-only].

Public API: neural_compressor.torch.export.export, then .quantization.prepare / convert with get_default_static_config()
(int8 per-channel symmetric weights, uint8 per-tensor asymmetric activations, minmax) or get_default_dynamic_config().
All documented defaults kept. It wraps torchao's PT2E with X86InductorQuantizer. CALIBRATION.npz holds the positional
inputs in forward order. Prints which torch operators are quantized and whether torch.onnx.export accepts the result.
"""

import argparse
import collections
import importlib
import os
import sys

sys.path.insert(0, os.getcwd())
os.environ.setdefault("LOGLEVEL", "ERROR")  # Neural Compressor's log level
import numpy as np
import torch
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import (
    convert,
    get_default_dynamic_config,
    get_default_static_config,
    prepare,
)


def count(graph_module):
    return dict(
        collections.Counter(str(n.target) for n in graph_module.graph.nodes if n.op == "call_function")
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("factory"), p.add_argument("calibration"), p.add_argument("out")
    p.add_argument("--dynamic", action="store_true"), p.add_argument("--quantize-only", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    module, function = a.factory.split(":")
    model = getattr(importlib.import_module(module), function)().eval()
    arrays = list(np.load(a.calibration).values())
    batches = [tuple(torch.from_numpy(x[k : k + 1]) for x in arrays) for k in range(len(arrays[0]))]
    with torch.no_grad():
        reference = [model(*b) for b in batches[:8]]
        prepared = prepare(
            export(model, example_inputs=batches[0]),
            get_default_dynamic_config() if a.dynamic else get_default_static_config(),
        )
        for b in batches:
            prepared(*b)
        quantized = convert(prepared)
        outputs = [quantized(*b) for b in batches[:8]]
    print("torch graph", count(quantized))
    print(
        "torch sqnr dB",
        [
            round(float(10 * torch.log10((r**2).sum() / ((r - o) ** 2).sum())), 1)
            for r, o in zip(reference, outputs)
        ],
    )
    if a.quantize_only:
        return
    try:
        torch.onnx.export(
            quantized, batches[0], a.out, dynamo=True, opset_version=20, external_data=False, verbose=False
        )
        print("torch.onnx.export: ok")
    except Exception as e:
        print("torch.onnx.export failed:", type(e).__name__, str(e)[:1500])
        sys.exit(1)


if __name__ == "__main__":
    main()
