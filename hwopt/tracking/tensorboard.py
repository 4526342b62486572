"""TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from hwopt.core.canonical import JSON
from hwopt.tracking.spec import TensorBoardSettings


class TensorBoard:
    """A folder of events for each run."""

    def __init__(self, settings: TensorBoardSettings) -> None:
        self._folder = Path(settings.folder)
        self._writer: SummaryWriter | None = None

    def start(self, run: str, config: Mapping[str, JSON], /) -> None:
        """Open the event file."""
        self._writer = SummaryWriter(str(self._folder / run))
        rows = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self._writer.add_text("config", rows)

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Scalars."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def note(self, step: int, text: str, /) -> None:
        """As text."""
        if self._writer is not None:
            self._writer.add_text("events", text, step)

    def artifact(self, path: Path, kind: str, /) -> None:
        """By its name; TensorBoard holds no files."""
        self.note(0, f"{kind}: {path.name}")

    def finish(self, status: str, /) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
