"""The models by name, light to import: options and where the network is built."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.choices import ModelSpec
from hwopt.core.settings import Settings

Share = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=4096)]


class MlpOptions(Settings):
    """A multi-layer perceptron."""

    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (256, 128)
    dropout: Share = 0.0


class CnnOptions(Settings):
    """Four convolutions with batch norm; channels are 1, 2, 3 and 4 times the width."""

    width: Width = 32
    dropout: Share = 0.1


class MobileNetV2Options(Settings):
    """Inverted residuals, with strides for small images."""

    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    dropout: Share = 0.1


MLP: Final = ModelSpec(settings=MlpOptions, build="hwopt.models.mlp:build")
CNN: Final = ModelSpec(settings=CnnOptions, build="hwopt.models.cnn:build")
MOBILENET_V2: Final = ModelSpec(settings=MobileNetV2Options, build="hwopt.models.mobilenet_v2:build")
