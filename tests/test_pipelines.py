"""Every shipped pipeline is planned."""

from __future__ import annotations

import pytest

from hwopt.config.profile import load
from hwopt.engine.pipeline import prepare
from tests.conftest import ROOT, SHARED_DATA


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_plans(path: object) -> None:
    name = getattr(path, "stem", "")
    if name == "mnist" and not (SHARED_DATA / "mnist").is_dir():
        pytest.skip(f"the shared data set mnist is not here (looked in {SHARED_DATA})")
    overrides = [f"data.root={SHARED_DATA / 'mnist'}"] if name == "mnist" else []
    prepared = prepare(load(ROOT / "pipelines" / f"{name}.yaml", overrides))
    assert len(prepared.plan.rows) == len(prepared.profile.candidates) * len(prepared.profile.targets)
    assert prepared.profile.name == name
