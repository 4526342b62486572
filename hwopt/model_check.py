"""Look at an ONNX file from outside before any runtime touches it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from hwopt.errors import ConfigError, UnsafeInputError

MAX_BYTES: Final = 2 << 30  # protobuf's own limit


def check_model(path: Path) -> None:
    """Refuse what is no sound, self-contained ONNX model.

    Raises:
        ConfigError: there is no such file.
        UnsafeInputError: too large, not ONNX, invalid, or its weights lie in other files.
    """
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="give the path of an .onnx file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsafeInputError(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}", where=str(path))
    try:
        model = onnx.load(path, load_external_data=False)
        if any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer):
            raise UnsafeInputError(
                "the model keeps its weights in other files",
                where=str(path),
                fix="save it as one file: onnx.save(onnx.load(path), new_path)",
            )
        onnx.checker.check_model(model)
    except DecodeError:
        raise UnsafeInputError("not an ONNX file", where=str(path)) from None
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UnsafeInputError(
            f"not a valid ONNX model: {str(error).splitlines()[0]}", where=str(path)
        ) from None
