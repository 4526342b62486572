"""Records as small as a store takes them."""

from __future__ import annotations

from typing import Any


def record(run: str, **changes: Any) -> dict[str, Any]:
    """A whole record that says next to nothing."""
    return {
        "schema_version": 2, "run": run, "name": "demo", "status": "finished", "verdict": "PASS", "choice": {},
        "results": [], "requirements": [], "not_checked": [], "steps": [], "training": None, "source": None,
        "data": None, "started": "2026-11-21T00:00:00+00:00", "seconds": 1.0, "seed": 0, "threads": 1,
        "profile": {"path": "p.yaml", "text": "", "digest": "sha256:0"}, "bounds": [], "release": {},
        "environment": {"python": "3", "libraries": {"hwopt": "0"}, "host": {
            "cpu": "c", "cores": 1, "system": "s", "arch": "x", "isa": [], "caches_kib": {}}, "host_profile": None},
        **changes,
    }  # fmt: skip
