"""The base of everything that a user writes: strict, frozen, unknown keys refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from hwopt.core.canonical import JSON


class Settings(BaseModel):
    """A frozen, strict pydantic model; the same class serves at the edge and inside.

    Subclasses never look anything up: no files, network, environment or clock.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, protected_namespaces=()
    )

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON of all fields, defaults included; the input of digests and records."""
        data: dict[str, Any] = self.model_dump(mode="json")
        return data
