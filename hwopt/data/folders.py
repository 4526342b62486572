"""Folders of images: ``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field

from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings
from hwopt.data.arrays import checked
from hwopt.errors import ConfigError, EngineMissingError

_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_EIGHT_BITS: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})
_MOST_PIXELS: Final = 1 << 26  # of one file, before it is scaled: what unpacks to more is refused


class FolderOptions(Settings):
    """Where the images are, and the size that all are scaled to."""

    root: str
    size: Annotated[int, Field(ge=1, le=4096)]  # pixels of height and width
    gray: bool = False


def files(options: FolderOptions) -> list[Path]:
    """All images of both splits, in order."""
    root = Path(options.root)
    found = [
        p
        for part in ("train", "test")
        for p in sorted((root / part).glob("*/*"))
        if p.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise ConfigError(
            "no image below train/CLASS or test/CLASS", where=str(root),
            fix=f"put files with {', '.join(sorted(_SUFFIXES))} there",
        )  # fmt: skip
    return found


def load(options: FolderOptions) -> Dataset:
    """Images N×C×size×size in 0…1; classes are the folders of train, sorted."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise EngineMissingError(
            "folders of images need Pillow, which is not installed", fix="pip install 'hwopt[images]'"
        ) from error
    root = Path(options.root)
    classes = sorted({p.parent.name for p in files(options) if p.parent.parent == root / "train"})
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        images, labels = [], []
        for path in files(options):
            if path.parent.parent != root / part:
                continue
            if path.parent.name not in classes:
                raise ConfigError(f"the class {path.parent.name!r} is not in train", where=str(path))
            try:
                with Image.open(path) as image:
                    if image.width * image.height > _MOST_PIXELS:
                        raise ConfigError(f"{image.width}×{image.height} pixels", where=str(path))
                    if image.mode not in _EIGHT_BITS:
                        raise ConfigError(
                            f"an image of mode {image.mode}, whose scale is not known", where=str(path),
                            fix="store it with eight bits a channel",
                        )  # fmt: skip
                    scaled = image.convert("L" if options.gray else "RGB").resize(
                        (options.size, options.size)
                    )
                    images.append(np.asarray(scaled, np.uint8))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ConfigError(
                    f"not a readable image: {error}", where=str(path), fix="repair or remove it"
                ) from None
            labels.append(classes.index(path.parent.name))
        if not images:
            raise ConfigError(f"no image below {part}/CLASS", where=str(root))
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.stack(images), np.array(labels)
    return checked(root.name, arrays, len(classes))


SOURCE: Final = DataSource(
    settings=FolderOptions,
    load="hwopt.data.folders:load",
    files=files,
    paths=("root",),
    libraries=("pillow",),
)
