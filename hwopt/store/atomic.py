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
from hwopt.errors import ConfigError, ResourceLimitError


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path``."""
    data = text.encode()
    _write(path, lambda handle: handle.write(data), len(data))


def copy_file(source: Path, path: Path) -> None:
    """Put a copy of ``source`` at ``path``; a copy and not a link, so that later changes do not reach it."""
    with source.open("rb") as reader:
        _write(path, lambda handle: shutil.copyfileobj(reader, handle), source.stat().st_size)


def _write(path: Path, fill: Callable[[BinaryIO], object], needed: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                fill(handle)
                handle.flush()
                crossing("write.temporary")
                os.fsync(handle.fileno())
            crossing("write.synced")
            temporary.chmod(0o666 & ~_umask())  # as any other new file; mkstemp's is for its owner alone
            temporary.replace(path)
            crossing("write.renamed")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path, needed) from error


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's mask; reading it means setting it, so it is set back at once."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def explained(error: OSError, path: Path, needed: int | None = None) -> Exception:
    """The user's error for a failed write of ``needed`` bytes."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
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
