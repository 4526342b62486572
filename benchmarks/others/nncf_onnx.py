"""Quantize an ONNX model with NNCF: python nncf_onnx.py FLOAT.onnx CALIBRATION.npz OUT.onnx [--mixed] [--openvino].

Public API: nncf.quantize (ONNX backend; with --openvino the OpenVINO backend, writing OUT.xml + OUT.bin).
Documented defaults kept: preset None (= PERFORMANCE, symmetric activations), subset_size 300, fast_bias_correction
True, overflow_fix unset, model_type None. target_device is CPU as asked (documented default: ANY).
--transformer sets model_type=TRANSFORMER (then the default preset is MIXED); --subset-size raises the 300-sample cap.
--per-tensor-activations: by default NNCF quantizes the input of a depthwise convolution per channel, which ORT's CPU
provider cannot run in integers; OpenVINO can. OpenVINO import is convert_model: with Core.read_model a depthwise
weight can stay behind a Reshape and its convolution then runs in floating point.
"""

import argparse
import os

os.environ["CI"] = "true"  # openvino_telemetry is then silent; must be set before nncf/openvino are imported
import nncf
import numpy as np
import onnx
import openvino
from nncf.quantization.advanced_parameters import QuantizationParameters


def feeds(shapes, npz):
    """One feed per batch; the batch is the model's fixed one, else 1."""
    arrays = np.load(npz)
    arrays = {name: arrays[name] for name in shapes}
    batch = max(next(iter(shapes.values()))[0], 1)
    count = len(next(iter(arrays.values()))) // batch
    return [{name: a[k * batch : (k + 1) * batch] for name, a in arrays.items()} for k in range(count)]


def onnx_shapes(model):
    weights = {t.name for t in model.graph.initializer}
    return {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in model.graph.input
        if i.name not in weights
    }


def openvino_shapes(model):
    return {
        i.get_any_name(): [d.get_length() if d.is_static else -1 for d in i.get_partial_shape()]
        for i in model.inputs
    }


def main():
    p = argparse.ArgumentParser()
    p.add_argument("float_model"), p.add_argument("calibration"), p.add_argument("out")
    p.add_argument("--subset-size", type=int, default=300)
    for flag in ("--mixed", "--openvino", "--transformer", "--per-tensor-activations"):
        p.add_argument(flag, action="store_true")
    a = p.parse_args()
    model = openvino.convert_model(a.float_model) if a.openvino else onnx.load(a.float_model)
    data = feeds(openvino_shapes(model) if a.openvino else onnx_shapes(model), a.calibration)
    per_tensor = QuantizationParameters(per_channel=False) if a.per_tensor_activations else None
    advanced = (
        nncf.AdvancedQuantizationParameters(activations_quantization_params=per_tensor)
        if per_tensor
        else None
    )
    quantized = nncf.quantize(
        model,
        nncf.Dataset(data),
        preset=nncf.QuantizationPreset.MIXED if a.mixed else None,
        target_device=nncf.TargetDevice.CPU,
        subset_size=a.subset_size,
        model_type=nncf.ModelType.TRANSFORMER if a.transformer else None,
        advanced_parameters=advanced,
    )
    if a.openvino:
        openvino.save_model(quantized, os.path.splitext(a.out)[0] + ".xml", compress_to_fp16=False)
    else:
        onnx.save(quantized, a.out)


if __name__ == "__main__":
    main()
