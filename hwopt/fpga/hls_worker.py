"""The process in which hls4ml runs: ``python -m hwopt.fpga.hls_worker FOLDER``."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import onnx

_IR = 10  # qonnx makes nodes of the newest format otherwise, which no runtime reads yet


def main(folder: Path) -> None:
    """Read model, inputs and task; write outputs and what hls4ml chose."""
    onnx.IR_VERSION = _IR  # type: ignore[assignment]
    import hls4ml
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    task = json.loads((folder / "task.json").read_text())
    x = np.load(folder / "inputs.npy", allow_pickle=False)
    model = cleanup_model(ModelWrapper(str(folder / "model.qonnx.onnx")))
    model = cleanup_model(model.transform(GemmToMatMul()))
    if x.ndim == 4:
        model = model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
        model = cleanup_model(model.transform(GemmToMatMul()))
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    settings = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vivado", default_precision=task["accumulators"]
    )
    project = hls4ml.converters.convert_from_onnx_model(
        model,
        output_dir=str(folder / "project"),
        backend="Vivado",
        hls_config=settings,
        io_type=task["io"],
    )
    project.compile()
    outputs = np.asarray(project.predict(x))
    np.save(folder / "outputs.npy", outputs.reshape(len(x), -1), allow_pickle=False)
    types = {
        layer.name: str(next(iter(layer.variables.values())).type.precision) for layer in project.get_layers()
    }
    told = {"version": importlib.metadata.version("hls4ml"), "types": types}
    (folder / "result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
