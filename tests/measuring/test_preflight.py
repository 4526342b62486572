"""What is read from the system, with a system made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwopt.measuring import energy, preflight
from hwopt.measuring.preflight import Preflight

CALM = Preflight(
    cores=2,
    cores_online=2,
    quota_cores=None,
    load=0.1,
    governor="performance",
    turbo=None,
    smt=False,
    virtual=True,
    steal_share=0.0,
    memory_pressure=0.0,
    celsius=None,
    on_battery=None,
)


def test_this_machine_answers() -> None:
    found = preflight.preflight()
    assert found.cores >= 1
    assert set(found.to_json()) >= {"load", "quota_cores", "steal_share", "warnings"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"load": 7.0}, "load 7.0 on 2 cores"),
        ({"quota_cores": 0.5}, "0.5 of 2 cores"),
        ({"governor": "powersave"}, "powersave"),
        ({"steal_share": 0.1}, "10%"),
        ({"memory_pressure": 0.2}, "memory"),
        ({"on_battery": True}, "battery"),
    ],
)
def test_each_trouble_is_named(change: dict[str, object], says: str) -> None:
    values = {name: getattr(CALM, name) for name in CALM.__slots__}
    (warning,) = Preflight(**{**values, **change}).warnings()
    assert says in warning
    assert CALM.warnings() == []


def test_energy_comes_from_a_counter_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    assert energy.package_counter() is None
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "energy_uj").write_text("1000000")
    (folder / "max_energy_range_uj").write_text("5000000")
    counter = energy.package_counter()
    assert counter is not None
    assert (counter.read(), counter.wraps_at) == (1.0, 5.0)
    used = iter([4.0, 1.0])  # it wraps at 5: 2 joules in all
    wrapping = energy.Counter(name="x", read=lambda: next(used), wraps_at=5.0)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    joules = energy.joules_a_call(call, wrapping, seconds=0.01)
    assert joules == pytest.approx(2.0 / calls)
