"""Every shipped device loads, and every number in it has a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwopt.config import hardware
from hwopt.core.hardware import DeviceKind, HardwareProfile, QDType, TensorScheme
from hwopt.errors import ConfigError
from hwopt.plugins import table

REQUIRED = {
    "x86-avx2", "x86-avx512-vnni", "x86-amx", "arm64-dotprod", "jetson-orin-nano", "nvidia-t4", "nvidia-l4",
    "nvidia-a100", "nvidia-h200", "zcu104", "pynq-z2", "kria-kv260",
}  # fmt: skip


def numbers(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def test_the_promised_devices_are_there() -> None:
    assert set(hardware.names()) >= REQUIRED


@pytest.mark.parametrize("name", hardware.names())
def test_every_number_has_a_source(name: str) -> None:
    profile = hardware.shipped(name)
    value = profile.to_json()
    sources = value.pop("sources")
    assert isinstance(sources, dict)
    for path in numbers(value):
        assert any(path == s or path.startswith(s + ".") for s in sources), f"{name}: {path} has no source"
    for source in sources:
        assert len(str(sources[source])) > 5 or sources[source] == "the same"


@pytest.mark.parametrize("name", hardware.names())
def test_runtimes_exist_and_kinds_agree(name: str) -> None:
    profile = hardware.shipped(name)
    assert set(profile.runtimes) <= set(table("backend"))
    assert bool(profile.runtimes) == (profile.kind is not DeviceKind.FPGA)


def test_without_vnni_weights_have_seven_bits() -> None:
    """u8 × s8 pair sums stay inside int16 for every known CPU without VNNI."""
    for name in ("x86-avx2", "generic-cpu"):
        low, high = hardware.shipped(name).quantization.weights.codes
        assert 2 * 255 * max(-low, high) <= 2**15  # two products of the greatest codes
    assert hardware.shipped("x86-avx512-vnni").quantization.weights.codes == (-128, 127)


def test_types() -> None:
    assert str(QDType.parse("uint4")) == "uint4"
    assert (QDType.parse("int4").low, QDType.parse("int4").high) == (-8, 7)
    with pytest.raises(ValueError, match="not an integer type"):
        QDType.parse("float8")
    with pytest.raises(ValueError, match="does not lie inside"):
        TensorScheme(dtype="int4", symmetric=True, granularity="tensor", range=(-64, 63))


def test_user_profile_by_path(tmp_path: Path) -> None:
    text = (hardware.folder() / "x86-avx2.yaml").read_text().replace("name: x86-avx2", "name: mine")
    (tmp_path / "mine.yaml").write_text(text)
    assert isinstance(hardware.find("mine.yaml", tmp_path), HardwareProfile)
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is named"):
        hardware.find("other.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text(text.replace("dtype: int8", "dtype: int99").replace("mine", "bad"))
    with pytest.raises(ConfigError, match="int99"):
        hardware.find("bad.yaml", tmp_path)
