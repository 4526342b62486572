"""Weights & Biases; offline unless asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from hwopt.core.canonical import JSON
from hwopt.tracking.spec import WandbSettings


class Wandb:
    """A run whose id follows from its name, so that a resumed training goes on in the same one."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._run: Any = None

    def start(self, run: str, config: Mapping[str, JSON], /) -> None:
        """Begin or resume."""
        Path(self._settings.folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._settings.project,
            name=run,
            id=hashlib.sha256(run.encode()).hexdigest()[:16],
            config=dict(config),
            dir=self._settings.folder,
            mode=self._settings.mode,
            resume="allow" if self._settings.mode == "online" else None,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Metrics."""
        self._run.log(dict(values), step=step)

    def note(self, step: int, text: str, /) -> None:
        """Into the summary."""
        self._run.summary[f"event/{step}"] = text

    def artifact(self, path: Path, kind: str, /) -> None:
        """By name."""
        self._run.summary[f"artifact/{kind}"] = path.name

    def finish(self, status: str, /) -> None:
        """Close."""
        self._run.finish(exit_code=0 if status == "ok" else 1)
