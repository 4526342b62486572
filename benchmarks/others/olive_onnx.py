"""Quantize an ONNX model with Olive: python olive_onnx.py FLOAT.onnx CALIBRATION.npz OUT.onnx [options].

Public API: olive.workflows.run with one OnnxStaticQuantization pass (or OnnxDynamicQuantization) and a data_config
whose dataset is registered with olive.data.registry.Registry. Documented defaults kept: QDQ, precision int8,
activation_type int8, MinMax, quant_preprocess, prepare_qdq_config True. Note: with prepare_qdq_config True (the
default) Olive 0.13 does not hand reduce_range to ORT; --no-prepare-qdq-config makes it reach quantize_static.
"""

import argparse
import os
import tempfile

os.environ["CI"] = "true"  # Olive sends a heartbeat at import unless a CI variable is set
os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnx
from olive.data.registry import Registry
from olive.workflows import run


@Registry.register_dataset()
def npz_dataset(calibration, float_model, **_):
    graph = onnx.load(float_model, load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    arrays = np.load(calibration)
    arrays = {i.name: arrays[i.name] for i in inputs}
    batch = inputs[0].type.tensor_type.shape.dim[0].dim_value or 1
    count = len(arrays[inputs[0].name]) // batch
    return [({n: a[k * batch : (k + 1) * batch] for n, a in arrays.items()}, 0) for k in range(count)]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("float_model"), p.add_argument("calibration"), p.add_argument("out")
    p.add_argument("--activations", choices=["uint8", "int8"], default="int8")
    p.add_argument("--weights", choices=["int8", "uint8"], default="int8")
    p.add_argument("--method", choices=["MinMax", "Entropy", "Percentile"], default="MinMax")
    for flag in ("--per-channel", "--reduce-range", "--dynamic", "--no-prepare-qdq-config"):
        p.add_argument(flag, action="store_true")
    a = p.parse_args()
    step = {
        "type": "OnnxDynamicQuantization",
        "precision": a.weights,
        "per_channel": a.per_channel,
        "reduce_range": a.reduce_range,
    }
    if not a.dynamic:
        data = {
            "name": "calib",
            "type": "DataContainer",
            "load_dataset_config": {
                "type": "npz_dataset",
                "params": {"calibration": a.calibration, "float_model": a.float_model},
            },
            "dataloader_config": {"params": {"batch_size": None}},
        }
        step.update(
            type="OnnxStaticQuantization",
            activation_type=a.activations,
            calibrate_method=a.method,
            data_config=data,
            prepare_qdq_config=not a.no_prepare_qdq_config,
        )
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            {
                "input_model": {"type": "OnnxModel", "model_path": a.float_model},
                "passes": {"quantize": step},
                "output_dir": os.path.join(folder, "out"),
                "cache_dir": os.path.join(folder, "cache"),
                "log_severity_level": 3,
            }
        )
        onnx.save(onnx.load(result.get_output_models()[0].model_path), a.out)


if __name__ == "__main__":
    main()
