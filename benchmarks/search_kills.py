"""Kill a search's lead and its worker at random times, go on each time, and compare with an undisturbed search.

    python -m benchmarks.search_kills --kills 20

The lead and one worker share a PostgreSQL database that is started for the purpose. After every kill (SIGKILL, of the lead
and of the worker in turn) the killed one is started again. Proposals are random, so that they do not depend on the order
in which workers finish. At the end: every trial has one state, the samples, states and
values are those of an undisturbed search on one machine, and the same version is the best.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.search.servers import postgresql

COMMAND = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]
PROFILE = """\
name: killed
threads: 1
data: {name: digits}
model: {name: mlp, hidden: [16]}
train: {epochs: 40, batch_size: 16}
candidates: {float: []}
targets: [host-cpu]
requirements: [{metric: macs, max: 3000}]
search:
  sampler: random
  trials: 60
  objectives: [{metric: accuracy}]
  space:
    train.optimizer.lr: {log: [1e-3, 3e-2]}
    model.hidden.0: {one_of: [8, 16, 24, 32, 48, 64]}
"""


@click.command()
@click.option("--kills", default=20)
@click.option("--seed", default=0)
def main(kills: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - when to kill is no secret
    with postgresql() as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(PROFILE)
        shared = ["--storage", url, "--lease", "4"]

        def start(*more: str) -> subprocess.Popen[bytes]:
            with (folder / "log").open("ab") as log, (folder / "out.json").open("wb") as out:
                return subprocess.Popen(
                    [*COMMAND, *shared, *more], cwd=folder, stdout=out, stderr=log, start_new_session=True
                )

        def finished(process: subprocess.Popen[bytes]) -> bool:
            return process.poll() is not None

        lead_words = ("--crew", "queue", "--no-refit", "--json")
        lead, worker = start(*lead_words), start("--join")
        done = {"lead": 0, "worker": 0}
        while sum(done.values()) < kills:
            time.sleep(rng.uniform(4, 14))
            if finished(lead):
                break
            who = "lead" if sum(done.values()) % 2 else "worker"
            victim = lead if who == "lead" else worker
            os.killpg(victim.pid, signal.SIGKILL)
            victim.wait()
            done[who] += 1
            click.echo(f"killed the {who}: {done}", err=True)
            if who == "lead":
                lead = start(*lead_words)
            else:
                worker = start("--join")
        assert lead.wait(600) == 0, (folder / "log").read_text()[-3000:]
        found = json.loads((folder / "out.json").read_text())
        assert worker.wait(60) == 0
        alone = subprocess.run(
            [*COMMAND, "--no-refit", "--json"], cwd=folder, capture_output=True, check=True
        )
        undisturbed = json.loads(alone.stdout)
        states = [t["status"] for t in found["trials"]]
        for part in ("sample", "status", "values"):
            assert [t[part] for t in found["trials"]] == [t[part] for t in undisturbed["trials"]], part
        assert found["winner"] == undisturbed["winner"]
        assert "running" not in states
        click.echo(
            f"{done['lead']} kills of the lead, {done['worker']} of the worker: {len(states)} trials, samples, states and values "
            f"as in an undisturbed search; the same best: trial {found['winner']}"
        )


if __name__ == "__main__":
    main()
