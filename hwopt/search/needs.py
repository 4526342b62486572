"""What searching needs beside the core."""

from __future__ import annotations

import importlib.util

from hwopt.errors import EngineMissingError


def needs_optuna() -> None:
    """EngineMissingError where the extra is not installed."""
    for name in ("optuna", "cmaes"):
        if importlib.util.find_spec(name) is None:
            raise EngineMissingError(
                f"{name} is not installed, and searches with it", fix="pip install 'hwopt[search]'"
            )
