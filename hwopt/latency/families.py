"""Time by operator family, so that a quantized model can be laid beside the float one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hwopt.core.backend import OperatorTime
from hwopt.core.canonical import JSON

_FAMILIES: Final = {
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "ConvInteger": "Conv",
    "Convolution": "Conv",
    "QGemm": "MatMul",
    "Gemm": "MatMul",
    "FusedGemm": "MatMul",
    "FusedMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulNBits": "MatMul",
    "FullyConnected": "MatMul",
    "GlobalAveragePool": "pooling",
    "AveragePool": "pooling",
    "ReorderInput": "layout",
    "ReorderOutput": "layout",
    "Transpose": "layout",
}


def family(op: str) -> str:
    """What an operator is to the user, whatever its precision."""
    plain = op.removeprefix("QLinear")
    return _FAMILIES.get(plain, plain)


def by_family(times: Iterable[OperatorTime]) -> dict[str, JSON]:
    """Microseconds of an inference by family, the longest first."""
    sums: dict[str, float] = {}
    for time in times:
        name = family(time.op)
        sums[name] = sums.get(name, 0.0) + time.seconds * 1e6
    return {name: sums[name] for name in sorted(sums, key=lambda n: -sums[n])}
