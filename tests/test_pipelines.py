"""Every shipped pipeline is planned."""

from __future__ import annotations

import pytest

from hwopt.config.profile import load
from hwopt.engine.prepare import prepare
from tests.conftest import ROOT, SHARED_DATA


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_plans(path: object) -> None:
    name = getattr(path, "stem", "")
    kind = name.partition("-")[0]
    folder = {"mnist": "mnist", "spam": "spam"}.get(kind)
    if folder is not None and not (SHARED_DATA / folder).is_dir():
        pytest.skip(f"the shared data set {folder} is not here (looked in {SHARED_DATA})")
    overrides = {
        "mnist": [f"data.root={SHARED_DATA / 'mnist'}"],
        "spam": [f"data.path={SHARED_DATA / 'spam' / 'spam.jsonl.gz'}"],
    }.get(kind, [])
    prepared = prepare(load(ROOT / "pipelines" / f"{name}.yaml", overrides))
    assert len(prepared.plan.rows) == len(prepared.profile.candidates) * len(prepared.profile.targets)
    assert prepared.profile.name == name
