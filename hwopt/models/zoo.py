"""The models by name, light to import: options and where the network is built."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from hwopt.core.choices import ModelSpec
from hwopt.core.settings import Settings

Share = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=4096)]
Norm = Literal["batch", "layer", "none"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "tanh", "sigmoid"]


class MlpOptions(Settings):
    """A multi-layer perceptron."""

    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (256, 128)
    dropout: Share = 0.0
    norm: Norm = "batch"
    activation: Activation = "relu"


class CnnOptions(Settings):
    """Convolutions with a norm; channels are 1, 2, 3, … times the width."""

    width: Width = 32
    depth: Annotated[int, Field(ge=1, le=16)] = 4
    kernel: Literal[3, 5, 7] = 3
    dropout: Share = 0.1
    norm: Norm = "batch"
    activation: Activation = "relu"


class MobileNetV2Options(Settings):
    """Inverted residuals, with strides for small images."""

    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    dropout: Share = 0.1


class ResNetOptions(Settings):
    """Residual blocks, for small images."""

    depth: Literal[8, 14, 20, 32, 44, 56] = 20
    width: Width = 16
    dropout: Share = 0.0


class EfficientNetOptions(Settings):
    """EfficientNet-Lite0."""

    pretrained: bool = True  # the ImageNet weights of its package; false: from scratch
    dropout: Share = 0.2


class TextRnnOptions(Settings):
    """Embedding, recurrent layers in both directions, attention."""

    cell: Literal["gru", "lstm"] = "gru"
    embedding: Width = 32
    hidden: Width = 32
    dropout: Share = 0.2


class TransformerOptions(Settings):
    """A small encoder."""

    width: Width = 48
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    layers: Annotated[int, Field(ge=1, le=48)] = 2
    dropout: Share = 0.1


MLP: Final = ModelSpec(settings=MlpOptions, build="hwopt.models.mlp:build")
CNN: Final = ModelSpec(settings=CnnOptions, build="hwopt.models.cnn:build")
MOBILENET_V2: Final = ModelSpec(settings=MobileNetV2Options, build="hwopt.models.mobilenet_v2:build")
RESNET: Final = ModelSpec(settings=ResNetOptions, build="hwopt.models.resnet:build")
EFFICIENTNET_LITE0: Final = ModelSpec(settings=EfficientNetOptions, build="hwopt.models.efficientnet:build")
TEXT_RNN: Final = ModelSpec(settings=TextRnnOptions, build="hwopt.models.text:build_rnn")
TRANSFORMER: Final = ModelSpec(settings=TransformerOptions, build="hwopt.models.text:build_transformer")
