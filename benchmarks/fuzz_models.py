"""Mutate valid models and hand them to the check, and what it lets through to ONNX Runtime in a worker process.

    python -m benchmarks.fuzz_models --count 10000

Prints how many were refused, accepted, run and refused by the runtime; exits 1 where hwopt itself raised something that is
no error of its own, or took more than five seconds for a file.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import onnx
from onnx import ModelProto

from hwopt.api.options import Options, feed_of
from hwopt.config.hardware import shipped
from hwopt.core.backend import Recipe
from hwopt.errors import HwoptError
from hwopt.latency.measure import Candidate, written
from hwopt.latency.workers import Process
from hwopt.model_check import check_model
from hwopt.testing.models import float_model, quantized_model

_SLOW = 5.0


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One of: flipped bits, cut, doubled, swapped or filled pieces; or a changed number, name or edge of the graph."""
    kind = dice.choice(
        ["flip", "cut", "double", "fill", "insert", "number", "rename", "edge", "shape", "attribute"]
    )
    buffer = bytearray(data)
    at, length = dice.randrange(len(buffer)), dice.choice([1, 2, 8, 64])
    match kind:
        case "flip":
            for _ in range(dice.choice([1, 1, 3, 20])):
                buffer[dice.randrange(len(buffer))] ^= 1 << dice.randrange(8)
        case "cut":
            del buffer[at : at + length]
        case "double":
            buffer[at:at] = buffer[at : at + length]
        case "fill":
            buffer[at : at + length] = bytes([dice.choice([0, 0x7F, 0x80, 0xFF])]) * length
        case "insert":
            buffer[at:at] = dice.randbytes(length)
        case _:
            return _restructured(data, kind, dice)
    return bytes(buffer)


def _restructured(data: bytes, kind: str, dice: random.Random) -> bytes:
    model = ModelProto.FromString(data)
    graph, numbers = model.graph, [0, -1, 1, 7, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63)]
    node = dice.choice(graph.node)
    match kind:
        case "number":
            tensor = dice.choice(graph.initializer)
            tensor.dims[:] = [dice.choice(numbers) for _ in tensor.dims]
        case "rename":
            node.op_type = dice.choice(
                [n.op_type for n in graph.node] + ["Loop", "If", "Resize", "Einsum", "Scan"]
            )
        case "edge":
            names = [o for n in graph.node for o in n.output] + [i.name for i in graph.initializer] + [""]
            if node.input:
                node.input[dice.randrange(len(node.input))] = dice.choice(names)
        case "shape":
            dims = graph.input[0].type.tensor_type.shape.dim
            dice.choice(dims).dim_value = dice.choice(numbers)
        case "attribute":
            for attribute in node.attribute:
                attribute.i = dice.choice(numbers)
                if attribute.ints:
                    attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice(numbers)
    return bytes(model.SerializeToString())


def seeds(folder: Path) -> list[bytes]:
    """Valid models to begin with."""
    paths = [float_model(folder)[0]]
    for device in ("generic-cpu", "x86-avx512-vnni"):
        inside = folder / device
        inside.mkdir()
        paths.append(quantized_model(inside, device)[0])
    return [path.read_bytes() for path in paths]


@click.command()
@click.option("--count", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--run/--no-run", "runs", default=True, help="Hand what is accepted to ONNX Runtime.")
def main(count: int, seed: int, runs: bool) -> None:
    """Fuzz."""
    found, longest = fuzz(count, seed, runs, click.echo)
    click.echo(f"{dict(found)}; the slowest check took {longest:.2f} s")
    sys.exit(1 if found["broken"] or found["slow"] else 0)


def fuzz(count: int, seed: int, runs: bool, say: Callable[[str], None]) -> tuple[Counter[str], float]:
    """What became of ``count`` mutants, and seconds of the slowest check."""
    dice, found, longest = random.Random(seed), Counter[str](), 0.0  # noqa: S311 - not for secrets
    process = Process(1, seconds=20.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = seeds(folder)
        path = folder / "m.onnx"
        for number in range(count):
            path.write_bytes(mutated(dice.choice(originals), dice))
            start = time.monotonic()
            try:
                check_model(path)
                kind = "accepted"
            except HwoptError as error:
                kind = f"refused with {error.exit_code}"
            except Exception as error:
                kind = "broken"
                say(f"mutant {number}: {type(error).__name__}: {error}")
            seconds = time.monotonic() - start
            longest = max(longest, seconds)
            if seconds > _SLOW:
                found["slow"] += 1
                say(f"mutant {number}: {seconds:.1f} s")
            found[kind] += 1
            if kind == "accepted" and runs:
                process = _run(path, process, found, folder)
    process.close()
    return found, longest


def _run(path: Path, process: Process, found: Counter[str], folder: Path) -> Process:
    """Load it and run it once; a process that died is replaced."""
    try:
        feed = feed_of(path, Options())
        candidate = Candidate(
            model=path, runtime="onnxruntime", hardware=shipped("generic-cpu"), feed=feed, recipe=Recipe()
        )
        inside = folder / "feeds"
        inside.mkdir(exist_ok=True)
        (side,) = written([candidate], inside)
        process.ask("footprint", side=side)
        found["run"] += 1
    except HwoptError as error:
        text = error.problems[0].problem
        found[
            "crashed the runtime"
            if "crashed" in text or "did not answer" in text
            else "refused by the runtime"
        ] += 1
    except onnx.checker.ValidationError:
        found["broken"] += 1
    if process.alive:
        return process
    process.close()
    return Process(1, seconds=20.0)


if __name__ == "__main__":
    main()
