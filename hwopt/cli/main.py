"""The command table and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Final, NoReturn

import click

import hwopt
from hwopt.cli import signals
from hwopt.cli.lazy import LazyGroup
from hwopt.errors import HwoptError, ResourceLimitError

INTERRUPTED: Final = 130
INTERNAL: Final = 70

_COMMANDS: Final = {
    "init": ("write a profile, a policy and a CI snippet for your model", "hwopt.cli.init:init"),
    "pipeline": ("run, plan or validate a pipeline profile", "hwopt.cli.pipeline:pipeline"),
    "search": ("find the best version that keeps the requirements", "hwopt.cli.search:search"),
    "search-server": ("hand a search's storage on to many workers", "hwopt.cli.search_server:search_server"),
    "train": ("train the model of a profile, or race trainings", "hwopt.cli.train:train"),
    "prune": ("remove channels of a checkpoint, to a goal", "hwopt.cli.compress:prune"),
    "finetune": ("train a checkpoint further, under a teacher", "hwopt.cli.compress:finetune"),
    "sparsify": ("set weights of a checkpoint to zero", "hwopt.cli.compress:sparsify"),
    "auto": ("decide width, layers and precision by measuring", "hwopt.cli.compress:auto"),
    "quantize": ("quantize a checkpoint or an ONNX model for a device", "hwopt.cli.quantize:quantize"),
    "verify": ("prove that a deployed model computes what it should", "hwopt.cli.verify:verify"),
    "export": ("write a checkpoint as ONNX", "hwopt.cli.single:export"),
    "check": ("look at a model, and whether a device's compiler takes it", "hwopt.cli.check:check"),
    "predict": ("how fast a model would be on a device that is not here", "hwopt.cli.predict:predict"),
    "fpga": ("what a model costs on an FPGA, and proof of it", "hwopt.cli.fpga:fpga"),
    "bench": ("measure ONNX models against each other", "hwopt.cli.bench:bench"),
    "gate": ("hold a run against a policy", "hwopt.cli.gate:gate"),
    "compare": ("what one run would change against another", "hwopt.cli.compare:compare"),
    "bundle": ("write a release folder, or prove one", "hwopt.cli.bundle:bundle"),
    "report": ("render a run as HTML, Markdown, JSON or CSV", "hwopt.cli.report:report"),
    "track": ("hand a run to TensorBoard, MLflow or Weights & Biases", "hwopt.cli.track:track"),
    "runs": ("list, show, tag, verify and clear recorded runs", "hwopt.cli.runs:runs"),
    "hardware": ("list, show and detect devices", "hwopt.cli.hardware:hardware"),
    "schema": ("print the JSON Schema of a profile, for editors", "hwopt.cli.schema:schema"),
    "completion": ("print a completion script for a shell", "hwopt.cli.completion:completion"),
    "doctor": ("what is installed, what is missing, how to get it", "hwopt.cli.doctor:doctor"),
}


@click.group(cls=LazyGroup, table=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hwopt.__version__, prog_name="hwopt")
@click.option("--debug", is_flag=True, help="Show a traceback for every error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Train, compress, export and measure a network, and say which version to ship.

    Exit codes: 0 done or PASS, 1 FAIL, 2 usage or config error, 3 INCONCLUSIVE, 4 engine missing, 5 stage
    failed, 6 unsafe input refused, 7 lock held, 8 out of disk or memory, 70 internal error, 130 interrupted.
    """
    ctx.obj = {"debug": debug}


def main() -> NoReturn:
    """Entry point: run a command, map every error to its exit code."""
    signals.listen()
    code = _run("--debug" in sys.argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_left()
    sys.exit(code)


def _run(debug: bool) -> int:
    try:
        code = cli.main(prog_name="hwopt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        signals.deafen()
        _say("interrupted; a pipeline keeps its finished steps, and the same command goes on from there")
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # Click turns a closed pipe into the latter, and nothing else does
        return _reader_left()
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, HwoptError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        _say("error: out of memory\n  fix: lower batch_size, or use a machine with more memory")
        return ResourceLimitError.exit_code
    _say(
        f"internal error: {type(error).__name__}: {error}\n"
        "  fix: this is a bug of hwopt; run again with `hwopt --debug …` and report what it prints"
    )
    return INTERNAL


def _reader_left() -> int:
    """The reader of our output has gone, as `| head` does; nothing more can be said to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(text, err=True)
