"""A policy file: YAML text to a ``Policy``, every problem at once."""

from __future__ import annotations

from pathlib import Path

from hwopt.config.problems import validate
from hwopt.config.yaml_text import parse, read_text
from hwopt.core.policy import Policy
from hwopt.errors import ConfigError, Problem


def read_policy(path: Path) -> Policy:
    """Read and check; ConfigError carries every problem with its line."""
    document = parse(read_text(path), path)
    problems: list[Problem] = []
    policy = validate(Policy, document.value, document, (), problems)
    if policy is None:
        raise ConfigError.of(problems)
    return policy
