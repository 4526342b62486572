"""Archives from outside: looked at before they are unpacked, and unpacked with a count."""

from __future__ import annotations

import errno
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from hwopt.errors import ConfigError, ResourceLimitError, UnsafeInputError

MAX_FILES: Final = 10_000
MAX_RATIO: Final = 200  # of bytes unpacked to bytes stored, from where on a file is taken for a bomb
_SMALL: Final = 64 << 20  # which may have any ratio
# What the zip reader raises for files that are none.
UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OverflowError,
    MemoryError,
)
_CHUNK: Final = 1 << 20


def check_zip(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> None:
    """Refuse what is too much: files, bytes, ratio, or files that share bytes.

    Raises:
        UnsafeInputError: with the reason.
    """
    items = archive.infolist()
    unpacked, stored = sum(i.file_size for i in items), sum(i.compress_size for i in items)
    problem = None
    if len(items) > MAX_FILES:
        problem = f"it holds {len(items):,} files; the limit is {MAX_FILES:,}"
    elif unpacked > max_bytes:
        problem = f"it unpacks to {unpacked:,} bytes; the limit is {max_bytes:,}"
    elif unpacked > _SMALL and unpacked > MAX_RATIO * path.stat().st_size:
        problem = f"it unpacks to {unpacked:,} bytes, more than {MAX_RATIO} times its size"
    elif stored > path.stat().st_size:
        problem = "its files share bytes"
    elif any(i.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} for i in items):
        problem = "it is packed in a way that archives of arrays and models are not"
    elif len({PurePosixPath(i.filename).as_posix().casefold() for i in items}) != len(items):
        problem = "two of its files have one name"
    if problem is not None:
        raise UnsafeInputError(f"the archive is not safe: {problem}", where=str(path))


def unpack_zip(path: Path, folder: Path, max_bytes: int = 8 << 30) -> None:
    """Unpack an archive as ``folder``, which must not exist; all of it or nothing.

    Raises:
        UnsafeInputError: a name that leads elsewhere, a link or device, too much, or contents that are not what the
            archive says.
        ConfigError: no readable archive, or the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists", fix="give the name of a folder that is not there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as name:
        root = Path(name) / "content"
        root.mkdir()
        try:
            with zipfile.ZipFile(path) as archive:
                check_zip(archive, path, max_bytes)
                left = max_bytes
                for item in archive.infolist():
                    left -= _unpack(archive, item, root, left, path)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ResourceLimitError(
                    "the disk is full", where=str(folder), fix="free space and try again"
                ) from error
            raise ConfigError(f"not a readable zip archive: {error}", where=str(path)) from None
        except UNREADABLE as error:
            raise ConfigError(f"not a readable zip archive: {error}", where=str(path)) from None
        shutil.move(root, folder)


def _unpack(archive: zipfile.ZipFile, item: zipfile.ZipInfo, root: Path, left: int, path: Path) -> int:
    name, mode = item.filename, item.external_attr >> 16
    parts = PurePosixPath(name).parts
    leads_away = (
        name.startswith("/") or ".." in parts or "\\" in name or PureWindowsPath(name).drive or not parts
    )
    if leads_away:
        raise UnsafeInputError(f"the archive holds {name!r}, which leads elsewhere", where=str(path))
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
        raise UnsafeInputError(f"the archive holds {name!r}, which is no plain file", where=str(path))
    target = root.joinpath(*parts)
    if item.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(item) as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > left or written > item.file_size:
                raise UnsafeInputError(f"{name!r} unpacks to more than the archive says", where=str(path))
            out.write(chunk)
    return written
