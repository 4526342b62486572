"""A PostgreSQL server of Debian's package, for the length of a test; it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def programs() -> Path | None:
    """The folder of initdb and postgres; None where the package is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database."""
    tools = programs()
    if tools is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    somebody: dict[str, Any] = {}
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("this is root, PostgreSQL does not run as root, and there is no user postgres")
        somebody = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="hwopt-postgresql-"))
    try:
        if somebody:
            os.chown(folder, somebody["user"], somebody["group"])
        data, port = folder / "data", free_port()
        made = subprocess.run(
            [tools / "initdb", "-D", data, "-U", "hwopt", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale"],
            cwd=folder, capture_output=True, text=True, check=False, **somebody,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        settings = [
            f"port={port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={folder}",
            "fsync=off",
        ]
        options = [word for setting in settings for word in ("-c", setting)]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [tools / "postgres", "-D", data, *options], cwd=folder, stderr=log, **somebody
            )
        try:
            deadline = time.monotonic() + 60
            ready = [tools / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
            while subprocess.run(ready, check=False).returncode:
                alive = server.poll() is None and time.monotonic() < deadline
                assert alive, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"postgresql://hwopt@127.0.0.1:{port}/postgres"
        finally:
            with suppress(ProcessLookupError):
                server.send_signal(signal.SIGINT)
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
