from __future__ import annotations

import pytest

from hwopt.backends.onnxruntime.runtime import load as load_onnxruntime
from hwopt.core.backend import LoadFunction
from hwopt.testing.runtime import RuntimeContract


@pytest.mark.needs_runtime("onnxruntime")
class TestOnnxRuntime(RuntimeContract):
    @pytest.fixture
    def load(self) -> LoadFunction:
        return load_onnxruntime
