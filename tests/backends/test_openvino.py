from __future__ import annotations

from pathlib import Path

import pytest

from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Optimization, Recipe
from hwopt.errors import StageFailedError
from hwopt.plugins import load_reference
from hwopt.testing.models import float_model
from hwopt.testing.runtime import RuntimeContract


@pytest.mark.needs_runtime("openvino")
class TestOpenVino(RuntimeContract):
    device = "openvino-avx2"  # 7-bit weights run right on every x86

    @pytest.fixture
    def load(self) -> LoadFunction:
        function: LoadFunction = load_reference("hwopt.backends.openvino.runtime:load")
        return function

    def test_does_not_pretend_to_run_a_file_as_written(self, load: LoadFunction, tmp_path: Path) -> None:
        path, _ = float_model(tmp_path)
        with pytest.raises(StageFailedError, match="as written"):
            load(path, Recipe(optimization=Optimization.NONE), shipped(self.device))
