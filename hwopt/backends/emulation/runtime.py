"""A quantized ONNX file run in integers and shifts; it proves what a design computes, not how fast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from hwopt.core.backend import NodePrecision, OperatorTime, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import StageFailedError
from hwopt.fpga.emulate import Circuit
from hwopt.model_check import check_model

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


class Emulation:
    """One circuit."""

    def __init__(self, model: Path, recipe: Recipe) -> None:
        check_model(model)
        torch.set_num_threads(recipe.threads)
        self._recipe = recipe
        self._circuit = Circuit(model)

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One batch, in float64: the integers times their powers of two, without rounding."""
        return list(self._circuit.run(np.asarray(inputs[self._circuit.input], np.float32)))

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape."""
        return {self._circuit.input: self._circuit.shape}

    def dtypes(self) -> Mapping[str, str]:
        """Float32: the first quantizer takes it in."""
        return {self._circuit.input: "float32"}

    def executed(self) -> list[NodePrecision]:
        """Everything behind the first quantizer is integer."""
        return [
            NodePrecision(
                name=node.name or node.output[0],
                op=node.op_type,
                integer=True,
                weighted=node.op_type in _WEIGHTED,
                placement="emulated",
            )
            for node in self._circuit.graph.node
            if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}
        ]

    def describe(self) -> Mapping[str, JSON]:
        """What it is."""
        return {"library": "hwopt", "device": "FPGA arithmetic, emulated", "threads": self._recipe.threads}

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """Times of an emulation say nothing."""
        raise StageFailedError("an emulation has no speed of its own", fix="hwopt fpga estimate")

    def close(self) -> None:
        """Nothing is held."""


def load(model: Path, recipe: Recipe, hardware: HardwareProfile) -> Emulation:
    """Read a model; ConfigError where it is no integer circuit."""
    return Emulation(model, recipe)
