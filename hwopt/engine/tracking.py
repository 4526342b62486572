"""Recorded runs to trackers, afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hwopt.core.canonical import JSON, canonical_json
from hwopt.errors import ConfigError, EngineMissingError, StageFailedError
from hwopt.plugins import load_reference, resolve
from hwopt.store.store import Store
from hwopt.tracking.ledger import read, replay
from hwopt.tracking.sink import Sink, SinkSpec


def push(store: Store, run: str, name: str, options: Mapping[str, JSON]) -> list[str]:
    """Feed every ledger of a run to the tracker ``name``; what was done, a line each.

    Raises:
        ConfigError: an unknown run, tracker or option, or a run that trained nothing.
        EngineMissingError: the tracker's library is not installed.
    """
    record = store.record(run)
    spec: SinkSpec = resolve("tracker", name)
    try:
        settings = spec.settings.model_validate_json(canonical_json(dict(options)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(spec.settings.model_fields)
        raise ConfigError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", fix=f"{name} takes {known}"
        ) from None
    said = []
    for step in record["steps"]:
        lines = list(read(path)) if (path := store.ledger(step["key"])) is not None else []
        if not lines:
            continue
        title = f"{record['name']}-{step['stage']}-{step['key'][-8:]}"
        config: dict[str, Any] = {"run": record["run"], "stage": step["stage"], "label": step["label"]}
        try:
            sink: Sink = load_reference(spec.make)(settings)
            count = replay(lines, sink, title, json.loads(canonical_json(config)))
        except ImportError as error:
            raise EngineMissingError(f"{name}: {error}", fix=f"pip install 'hwopt[{spec.extra}]'") from error
        except Exception as error:  # the boundary to foreign libraries
            text = str(error).splitlines()[0] if str(error) else ""
            raise StageFailedError(
                f"{name}: {type(error).__name__}: {text}", fix="see its own manual"
            ) from error
        said.append(f"{title}: {count} entries to {name}")
    if not said:
        raise ConfigError(f"the run {record['run']} wrote no ledger", fix="choose a run that trained a model")
    return said
