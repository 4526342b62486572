"""hwopt: train, compress, export and measure a network, and say which version to ship.

The rooms work without the pipeline too, from a notebook::

    import hwopt
    twin = hwopt.quantize(model, hardware="x86-avx2", calibration=images)
    print(hwopt.benchmark(["a.onnx", "b.onnx"], target="host-cpu"))
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__version__: Final = "0.1.0"

# Public name -> where it lives; loaded on first use so that `import hwopt` stays light.
_PUBLIC: Final = {
    "benchmark": "hwopt.api:benchmark",
    "quantize": "hwopt.api:quantize",
}

__all__ = ["__version__", "benchmark", "quantize"]


def __getattr__(name: str) -> Any:
    """Load a public function on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwopt' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
