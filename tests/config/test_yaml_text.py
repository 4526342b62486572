from __future__ import annotations

import time
from pathlib import Path

import pytest

from hwopt.config.yaml_text import MAX_BYTES, parse, read_text
from hwopt.errors import ConfigError

P = Path("p.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", "no"),
        ("a: yes", "yes"),
        ("a: on", "on"),
        ("a: true", True),
        ("a: 12:30:00", "12:30:00"),
        ("a: 1e-3", 0.001),
        ("a: 3.0e-3", 0.003),
        ("a: 010", "010"),
        ("a: 0x10", "0x10"),
        ("a: 2026-11-21", "2026-11-21"),
        ("a: '5'", "5"),
        ("a: 5", 5),
        ("a: -5", -5),
        ("a: 1.", 1.0),
        ("a: ~", None),
        ("a:", None),
        ("a: [1, {b: 2}]", [1, {"b": 2}]),
    ],
)
def test_scalars_without_yaml_1_1_surprises(text: str, value: object) -> None:
    parsed = parse(text, P).value
    assert parsed == {"a": value}
    assert isinstance(parsed, dict)
    assert type(parsed["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("a: 1\na: 2", "stands twice", 2),
        ("a: !!python/object/apply:os.system [x]", "tag", 1),
        ("a: !thing 1", "tag", 1),
        ("a: .nan", "finite", 1),
        ("a: [1, 2", "not valid YAML", 1),
        ("b: &x {c: 1}\na: {<<: *x}", "merge keys", 2),
        ("? [1, 2]\n: 3", "plain word", 1),
        ("a: \x01", "not valid YAML", 1),
        ("a: *nowhere", "not valid YAML", 1),
        ("a: " + "9" * 40, "digits", 1),
        ("a: " + "[" * 200 + "]" * 200, "nested", 1),
        ("a: &x [*x]", "nested", 1),
    ],
)
def test_refused_with_a_line(text: str, says: str, line: int) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse(text, P)
    where = caught.value.problems[0].where
    assert where is not None
    assert where.startswith("p.yaml:")
    if line > 1:
        assert where == f"p.yaml:{line}"


def test_alias_bomb_ends_soon() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)]
    start = time.process_time()
    with pytest.raises(ConfigError, match="counted with aliases"):
        parse("\n".join(lines), P)
    assert time.process_time() - start < 5


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="bytes"):
        read_text(path)


def test_places() -> None:
    document = parse("a: 1\nb:\n  - c: 2\n  - d: 3\n", P)
    assert document.where(("b", 1, "d")) == "p.yaml:4"
    assert document.where(("b", 7, "nothing")) == "p.yaml:3"
    assert document.where(("b",), key=True) == "p.yaml:2"
