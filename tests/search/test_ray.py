"""A search whose jobs are done by a Ray cluster of two nodes on this machine; one of them goes away."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from hwopt.engine.prepare import host_profile
from tests.conftest import hwopt
from tests.search.test_queue import PROFILE

COMMAND = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]


# Not by importing it: it reads its settings from the environment at that moment.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@needs_ray
def test_without_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(PROFILE)
    found = hwopt("search", "search.yaml", "--crew", "ray", cwd=tmp_path, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert (found.code, "no Ray cluster answers at 127.0.0.1:9" in found.err) == (4, True), found.err
    assert "Traceback" not in found.err


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_loses_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    mine = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": place,
    }
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    (tmp_path / "search.yaml").write_text(PROFILE)
    device = host_profile()
    tag = device.name if device is not None else "host-cpu"
    common: dict[str, Any] = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    head = {**common, "num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    lead: subprocess.Popen[bytes] | None = None
    try:
        env = {**os.environ, "RAY_ADDRESS": cluster.address}
        refused = hwopt("search", "search.yaml", "--crew", "ray", cwd=tmp_path, env=env)
        assert (refused.code, f"no node of the Ray cluster is a {tag}" in refused.err) == (2, True), (
            refused.err
        )
        nodes = [cluster.add_node(num_cpus=1, resources={tag: 1}, **common) for _ in range(2)]
        with (tmp_path / "out.json").open("w") as out, (tmp_path / "err.log").open("w") as err:
            command = [*COMMAND, "--crew", "ray", "--no-refit", "--json"]
            lead = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=err, env=env)
        deadline = time.monotonic() + 90
        while "trial 0: ok" not in (tmp_path / "err.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert lead.wait(90) == 0, (tmp_path / "err.log").read_text()
    finally:
        if lead is not None:
            lead.kill()
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)
    found = json.loads((tmp_path / "out.json").read_text())
    alone = hwopt("search", "search.yaml", "--no-refit", "--json", "--study", "alone", cwd=tmp_path).json
    assert [t["sample"] for t in found["trials"]] == [t["sample"] for t in alone["trials"]]
    assert [t["values"] for t in found["trials"]] == [t["values"] for t in alone["trials"]]
