"""The trackers by name, light to import."""

from __future__ import annotations

from typing import Final, Literal

from hwopt.core.settings import Settings
from hwopt.tracking.sink import SinkSpec


class TensorBoardSettings(Settings):
    """Event files for TensorBoard."""

    folder: str = "tensorboard"


class MlflowSettings(Settings):
    """MLflow; the default is a database file in the current folder, with no server."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "hwopt"


class WandbSettings(Settings):
    """Weights & Biases; offline unless asked otherwise."""

    project: str = "hwopt"
    folder: str = "wandb"
    mode: Literal["offline", "online"] = "offline"


TENSORBOARD: Final = SinkSpec(
    settings=TensorBoardSettings, make="hwopt.tracking.tensorboard:TensorBoard", extra="tensorboard"
)
MLFLOW: Final = SinkSpec(settings=MlflowSettings, make="hwopt.tracking.mlflow:Mlflow", extra="mlflow")
WANDB: Final = SinkSpec(settings=WandbSettings, make="hwopt.tracking.wandb:Wandb", extra="wandb")
