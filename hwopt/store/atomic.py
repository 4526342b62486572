"""Writing that is whole or not there: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hwopt.core.crossings import crossing
from hwopt.errors import ConfigError, FileTooLargeError, ResourceLimitError


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path``."""
    data = text.encode()
    _write(path, lambda handle: handle.write(data), len(data))


def append_text(path: Path, text: str) -> None:
    """Put ``text`` behind what is there; for files that others write to as well, as a CI system's summary."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.write(text.encode())
    except OSError as error:
        raise explained(error, path) from error


def copy_file(source: Path, path: Path) -> None:
    """Put a copy of ``source`` at ``path``; a copy and not a link, so that later changes do not reach it."""
    with source.open("rb") as reader:
        _write(path, lambda handle: shutil.copyfileobj(reader, handle), source.stat().st_size)


def _write(path: Path, fill: Callable[[BinaryIO], object], needed: int) -> None:
    if (
        path.exists() and not path.is_file() and not path.is_dir()
    ):  # /dev/stdout and the like are not replaced
        with path.open("wb") as handle:
            fill(handle)
        return
    try:
        make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                fill(handle)
                handle.flush()
                crossing("write.temporary")
                os.fsync(handle.fileno())
            crossing("write.synced")
            temporary.chmod(0o666 & ~_MASK)  # as any other new file; mkstemp's is for its owner alone
            temporary.replace(path)
            crossing("write.renamed")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path, needed) from error


def make_folder(path: Path) -> None:
    """A folder with all above it; each new one is on the disk, so that a power loss takes no file with its folder."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some file systems know no such thing
            raise
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's mask. Reading it means setting it, so it is read once, before there are threads."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_MASK = _umask()


def explained(error: OSError, path: Path, needed: int | None = None) -> Exception:
    """The user's error for a failed write of ``needed`` bytes."""
    if error.errno == errno.EFBIG:
        return FileTooLargeError(
            f"{path.name} would be larger than a file may be here",
            where=str(path.parent),
            fix="raise limits.file_gb (or ulimit -f), or make the version smaller",
        )
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        size = "" if needed is None else f" ({needed:,} bytes)"
        return ResourceLimitError(
            f"the disk is full: {path.name}{size} could not be written",
            where=str(path.parent),
            fix="free space and run again; finished steps are kept",
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ConfigError(
            f"cannot write: {error.strerror}",
            where=str(path.parent),
            fix="choose another folder with --store, or mend its permissions",
        )
    return ConfigError(
        f"cannot write: {error.strerror or error}",
        where=str(path.parent),
        fix="choose another folder with --store",
    )
