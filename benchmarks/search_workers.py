"""Two workers on PostgreSQL against one, where the work is waiting and not this machine's CPU.

    python -m benchmarks.search_workers

The model is a function of the user's that waits for eight seconds before it answers, as one does that talks to a board;
the training itself takes a tenth of a second. Workers are started first; timed is the lead's whole command.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.search.servers import postgresql

COMMAND = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]
MODEL = """\
import time
from torch import nn

def build(sample_shape, classes):
    time.sleep(8)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
PROFILE = """\
name: waiting
threads: 1
data: {name: digits}
model: {factory: "slow_model:build"}
train: {epochs: 1}
candidates: {float: []}
targets: [host-cpu]
search:
  sampler: random
  trials: 20
  objectives: [{metric: validation_accuracy}]
  space: {train.optimizer.lr: {log: [1e-3, 3e-2]}}
"""


@click.command()
def main() -> None:
    seconds = {}
    for count in (1, 2):
        with postgresql() as url, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "search.yaml").write_text(PROFILE)
            (folder / "slow_model.py").write_text(MODEL)

            def start(*more: str, url: str = url, folder: Path = folder) -> subprocess.Popen[bytes]:
                words = [*COMMAND, "--storage", url, "-q", *more]
                return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL)

            workers = [start("--join") for _ in range(count)]
            time.sleep(8)
            began = time.monotonic()
            assert start("--crew", "queue", "--no-refit").wait() == 0
            seconds[count] = time.monotonic() - began
            assert [worker.wait() for worker in workers] == [0] * count
    click.echo(f"one worker {seconds[1]:.0f} s, two {seconds[2]:.0f} s: {seconds[2] / seconds[1]:.2f}")


if __name__ == "__main__":
    main()
