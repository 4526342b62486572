"""Quantize an ONNX model with ONNX Runtime: python ort_onnx.py FLOAT.onnx CALIBRATION.npz OUT.onnx [options].

Public API: onnxruntime.quantization.quantize_static (QDQ format) or, with --dynamic, quantize_dynamic, each after
quant_pre_process (symbolic shape inference + graph optimization), as the ORT documentation recommends.
Documented defaults kept: every extra_options entry, op types to quantize, weights symmetric, per-tensor weights, no
reduce_range, minmax. Not a default: activations are uint8 (ORT's: int8), as its docstring recommends for x86.
"""

import argparse
import json
import os
import tempfile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ORT 1.31 for Linux collects session events otherwise
import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

KINDS = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):
    """One feed per batch; the batch is the model's fixed one, else 1."""

    def __init__(self, graph, npz):
        weights = {t.name for t in graph.initializer}
        inputs, arrays = [i for i in graph.input if i.name not in weights], np.load(npz)
        arrays = {i.name: arrays[i.name] for i in inputs}
        n = inputs[0].type.tensor_type.shape.dim[0].dim_value or 1
        self.feeds = (
            {k: a[j * n : (j + 1) * n] for k, a in arrays.items()}
            for j in range(len(arrays[inputs[0].name]) // n)
        )

    def get_next(self):
        return next(self.feeds, None)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("float_model"), p.add_argument("calibration"), p.add_argument("out")
    p.add_argument("--activations", choices=KINDS, default="uint8")
    p.add_argument("--weights", choices=KINDS, default="int8")
    p.add_argument("--method", choices=METHODS, default="minmax")
    p.add_argument(
        "--extra-options", type=json.loads, default={}, help="JSON merged into ORT's extra_options"
    )
    for flag in ("--per-channel", "--reduce-range", "--dynamic", "--skip-symbolic-shape"):
        p.add_argument(flag, action="store_true")
    a = p.parse_args()
    common = dict(
        per_channel=a.per_channel,
        reduce_range=a.reduce_range,
        weight_type=KINDS[a.weights],
        extra_options=a.extra_options,
    )
    model = onnx.load(a.float_model)
    with tempfile.TemporaryDirectory() as folder:
        prepared, source = os.path.join(folder, "prepared.onnx"), a.float_model
        if a.skip_symbolic_shape:  # else the exporter's value_info, which lists weights too, stays and quantize_dynamic trips over it
            del model.graph.value_info[:]
            source = os.path.join(
                folder, "source.onnx"
            )  # a file: given a ModelProto, quant_pre_process fails here
            onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=a.skip_symbolic_shape)
        if a.dynamic:
            return quantize_dynamic(prepared, a.out, **common)
        quantize_static(
            prepared,
            a.out,
            Reader(model.graph, a.calibration),
            QuantFormat.QDQ,
            activation_type=KINDS[a.activations],
            calibrate_method=METHODS[a.method],
            **common,
        )


if __name__ == "__main__":
    main()
