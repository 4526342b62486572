"""MLflow, through its client: no global state, no server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from hwopt.core.canonical import JSON
from hwopt.tracking.spec import MlflowSettings


class Mlflow:
    """A run of an experiment; one of the same name that is not finished goes on."""

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._run = ""

    def start(self, run: str, config: Mapping[str, JSON], /) -> None:
        """Find or make the run; parameters that a run has cannot change."""
        self._client = MlflowClient(tracking_uri=self._settings.uri)
        experiment = self._client.get_experiment_by_name(self._settings.experiment)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(self._settings.experiment)
        )
        name = run.replace("'", "")
        found = self._client.search_runs(
            [number], f"attributes.run_name = '{name}' and attributes.status = 'RUNNING'", max_results=1
        )
        self._run = (found[0] if found else self._client.create_run(number, run_name=name)).info.run_id
        for key, value in config.items() if not found else ():
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Metrics."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def note(self, step: int, text: str, /) -> None:
        """As a tag."""
        self._client.set_tag(self._run, f"event.{step}", text[:5000])

    def artifact(self, path: Path, kind: str, /) -> None:
        """By reference."""
        self._client.set_tag(self._run, f"artifact.{kind}", path.name)

    def finish(self, status: str, /) -> None:
        """End the run; an interrupted one stays open, to go on."""
        if status != "interrupted":
            self._client.set_terminated(self._run, "FINISHED" if status == "ok" else "FAILED")
