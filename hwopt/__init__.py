"""hwopt: train, compress, export and measure a network, and say which version to ship.

The rooms work without the pipeline too, from a notebook::

    import hwopt
    small, facts = hwopt.prune(model, hardware="host-cpu", samples=images, latency=0.5)
    twin = hwopt.quantize(model, hardware="x86-avx2", calibration=images)
    print(hwopt.benchmark(["a.onnx", "b.onnx"], target="host-cpu"))
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

__version__: Final = "0.1.0"

# ONNX Runtime 1.31 keeps usage events in the user's cache folder; nothing is recorded unless the user asks.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Public name -> where it lives; loaded on first use so that `import hwopt` stays light.
_PUBLIC: Final = {
    "benchmark": "hwopt.api.bench:benchmark",
    "bundle": "hwopt.api.bundle:bundle",
    "calibrate": "hwopt.api.predict:calibrate",
    "check": "hwopt.api.check:check",
    "check_bundle": "hwopt.api.bundle:check_bundle",
    "compare_runs": "hwopt.api.compare:compare_runs",
    "fpga_emulate": "hwopt.api.fpga_proof:emulate",
    "fpga_estimate": "hwopt.api.fpga:estimate_design",
    "fpga_explore": "hwopt.api.fpga:explore",
    "fpga_prove": "hwopt.api.fpga_proof:prove",
    "fpga_qonnx": "hwopt.api.fpga_proof:to_qonnx",
    "gate": "hwopt.api.gate:gate",
    "loadgen": "hwopt.api.loadgen:loadgen",
    "predict": "hwopt.api.predict:predict",
    "prune": "hwopt.api.models:prune",
    "quantize": "hwopt.api.models:quantize",
    "quantize_onnx": "hwopt.api.models:quantize_onnx",
    "self_test": "hwopt.api.self_test:self_test",
    "verify": "hwopt.api.models:verify",
}

__all__ = [
    "__version__",
    "benchmark",
    "bundle",
    "calibrate",
    "check",
    "check_bundle",
    "compare_runs",
    "fpga_emulate",
    "fpga_estimate",
    "fpga_explore",
    "fpga_prove",
    "fpga_qonnx",
    "gate",
    "loadgen",
    "predict",
    "prune",
    "quantize",
    "quantize_onnx",
    "self_test",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public function on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwopt' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
