"""A fixed amount of work that is timed beside every model.

Its time says how fast this machine was at that moment, so that a latency can be kept as a multiple of it and
compared across days; how far it is from the one on record says whether absolute times mean anything today.
Never change what it does: its version is part of what is compared.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from hwopt.core.backend import Recipe
from hwopt.measuring.block import Call

VERSION: Final = 1
_MATRIX: Final = 160  # rows and columns of a float32 product
_COPY: Final = 1 << 18  # float32 values, 1 MiB


def reference() -> Call:
    """A matrix product and a copy in NumPy, and a small convolution in ONNX Runtime, one thread."""
    rng = np.random.default_rng(VERSION)
    a, b = (rng.standard_normal((_MATRIX, _MATRIX), dtype=np.float32) for _ in range(2))
    product = np.empty_like(a)
    source = rng.standard_normal(_COPY, dtype=np.float32)
    copy = np.empty_like(source)
    image = rng.standard_normal((1, 16, 24, 24), dtype=np.float32)
    session = onnxruntime.InferenceSession(_convolution(rng), _options(), providers=["CPUExecutionProvider"])

    def call() -> None:
        np.matmul(a, b, out=product)
        np.copyto(copy, source)
        session.run(None, {"x": image})

    return call


def small_model() -> bytes:
    """The convolution alone, as an ONNX file."""
    return _convolution(np.random.default_rng(VERSION))


def _options() -> onnxruntime.SessionOptions:
    recipe, options = Recipe(), onnxruntime.SessionOptions()
    options.intra_op_num_threads = recipe.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _convolution(rng: np.random.Generator) -> bytes:
    weight = numpy_helper.from_array(rng.standard_normal((16, 16, 3, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 24, 24])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
