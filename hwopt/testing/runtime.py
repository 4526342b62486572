"""The contract that every backend keeps; inherit ``RuntimeContract`` in your own tests.

::

    class TestMine(RuntimeContract):
        @pytest.fixture
        def load(self):
            return my_backend.load
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Optimization, Recipe
from hwopt.errors import HwoptError
from hwopt.testing.models import Reference, float_model, quantized_model


class RuntimeContract:
    """What a pipeline relies on."""

    device = "generic-cpu"  # a hardware profile that the backend serves
    integer = True  # False for a runtime of float networks: what asks for integers is skipped
    weighted = 4  # operators with weights in ``float_file``

    @pytest.fixture
    def load(self) -> LoadFunction:
        """The backend's load function."""
        raise NotImplementedError("return your backend's load function")  # the one thing a subclass gives

    def float_file(self, folder: Path) -> tuple[Path, Reference]:
        """A float model of images 1×8×8 in a format that the backend takes, and what it computes."""
        return float_model(folder)

    def integer_file(self, folder: Path) -> tuple[Path, Reference]:
        """The same, quantized for the device."""
        if not self.integer:
            pytest.skip("this runtime runs float networks only")
        return quantized_model(folder, self.device)

    def test_runs_and_names_its_input(self, load: LoadFunction, tmp_path: Path) -> None:
        """One input, a dynamic batch, one output a class."""
        path, reference = self.float_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        try:
            ((name, shape),) = runtime.inputs().items()
            assert shape[0] is None
            x = np.random.default_rng(0).random((3, *[int(n or 1) for n in shape[1:]]), dtype=np.float32)
            (logits,) = runtime.run({name: x})
            # Float sums in another order: 1e-5 of logits around 1.
            np.testing.assert_allclose(logits, reference(x), atol=1e-5)
        finally:
            runtime.close()

    def test_a_float_model_runs_in_float(self, load: LoadFunction, tmp_path: Path) -> None:
        """Every weighted operator is found, and none is called integer."""
        path, _ = self.float_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        weighted = [node for node in runtime.executed() if node.weighted]
        runtime.close()
        assert len(weighted) == self.weighted
        assert not any(node.integer for node in weighted)

    def test_a_quantized_model_runs_in_integer(self, load: LoadFunction, tmp_path: Path) -> None:
        """Every weighted operator is found, and all are integer."""
        path, _ = self.integer_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        weighted = [node for node in runtime.executed() if node.weighted]
        runtime.close()
        assert len(weighted) == self.weighted
        assert all(node.integer for node in weighted)

    def test_quantized_agrees_with_its_twin(self, load: LoadFunction, tmp_path: Path) -> None:
        """Deployed arithmetic is the trained arithmetic."""
        path, reference = self.integer_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        x = np.random.default_rng(1).random((200, 1, 8, 8), dtype=np.float32)
        (logits,) = runtime.run({"input": x})
        runtime.close()
        assert np.mean(logits.argmax(1) == reference(x).argmax(1)) >= 0.99

    def test_says_what_it_is_and_where_operators_run(self, load: LoadFunction, tmp_path: Path) -> None:
        """Library with version, and a place for every operator with weights."""
        path, _ = self.float_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        found, nodes = runtime.describe(), runtime.executed()
        runtime.close()
        assert any(character.isdigit() for character in str(found["library"]))
        assert all(node.placement for node in nodes if node.weighted)

    def test_operators_are_timed_by_its_own_clock(self, load: LoadFunction, tmp_path: Path) -> None:
        """Positive seconds, under names that are not empty."""
        path, _ = self.float_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        x = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
        times = runtime.profile({next(iter(runtime.inputs())): x}, 5)
        runtime.close()
        assert times
        assert all(time.name and time.op and time.seconds >= 0 for time in times)
        assert sum(time.seconds for time in times) > 0

    def test_inputs_have_numpy_types(self, load: LoadFunction, tmp_path: Path) -> None:
        """So that arrays can be made for them."""
        path, _ = self.float_file(tmp_path)
        runtime = load(path, Recipe(), shipped(self.device))
        assert list(runtime.dtypes().values()) == ["float32"]
        runtime.close()

    def test_refuses_what_is_no_model(self, load: LoadFunction, tmp_path: Path) -> None:
        """One of our errors, with the runtime's reason."""
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"\x08\x01 nothing")
        with pytest.raises(HwoptError):
            load(path, Recipe(optimization=Optimization.ALL), shipped(self.device))
