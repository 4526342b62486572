"""A worker whose questions end badly; the entry point of tests."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from typing import Any

from hwopt.processes import Answer, Say


class Operations:
    """Each way to die."""

    def answer(self, asked: Mapping[str, Any], say: Say) -> Answer:
        say("working")
        return {
            "pid": os.getpid(),
            "secret": os.environ.get("MY_API_TOKEN"),
            "plain": os.environ.get("MY_SETTING"),
        }

    def segfault(self, asked: Mapping[str, Any], say: Say) -> Answer:
        ctypes.string_at(0)
        return {}

    def abort(self, asked: Mapping[str, Any], say: Say) -> Answer:
        os.abort()

    def killed(self, asked: Mapping[str, Any], say: Say) -> Answer:
        os.kill(os.getpid(), 9)
        return {}

    def leave(self, asked: Mapping[str, Any], say: Say) -> Answer:
        os._exit(3)

    def hang(self, asked: Mapping[str, Any], say: Say) -> Answer:
        self.deep_inside()
        return {}

    def deep_inside(self) -> None:
        time.sleep(600)

    def memory(self, asked: Mapping[str, Any], say: Say) -> Answer:
        return {"length": len(bytearray(4 << 30))}

    def not_a_number(self, asked: Mapping[str, Any], say: Say) -> Answer:
        return {"value": float("nan")}

    def chatter(self, asked: Mapping[str, Any], say: Say) -> Answer:
        print("words of a library on stdout")
        os.write(1, b"and of a C library\n")
        return {"ok": True}

    def big_file(self, asked: Mapping[str, Any], say: Say) -> Answer:
        with open(asked["path"], "wb") as handle:  # noqa: PTH123 - as a user's code might
            handle.write(b"\0" * 5_000_000)
        return {}
