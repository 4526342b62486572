"""``hwopt verify MODEL --against REFERENCE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

import hwopt
from hwopt.cli.console import json_option, print_json
from hwopt.cli.quantize import fixed_input
from hwopt.config.profile import load
from hwopt.core.profile import HOST_CPU
from hwopt.errors import StageFailedError

_NO_OPERATORS: Final = frozenset({"Const", "Input", "Output", "Parameter", "Result"})


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    required=True,
    help="A checkpoint (its torch network) or an ONNX file, executed as written.",
)
@click.option(
    "--inputs", type=click.Path(path_type=Path), required=True, help="npz with an array for each input."
)
@click.option("--target", default=HOST_CPU, show_default=True, help="Device that is here, or its YAML file.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Of a checkpoint with a network of your own."
)
@click.option("--fix", "fixed", multiple=True, metavar="INPUT=VALUE", help="Inputs fixed by quantize --fix.")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), help="Fail below this share of equal greatest outputs."
)
@click.option("--min-sqnr", type=float, default=5.0, show_default=True, help="Fail below this ratio, in dB.")
@click.option("--allow-float", is_flag=True, help="Accept operators that run in float all the same.")
@json_option
def verify(
    model: Path,
    against: Path,
    inputs: Path,
    target: str,
    profile: Path | None,
    fixed: tuple[str, ...],
    min_agreement: float | None,
    min_sqnr: float,
    allow_float: bool,
    as_json: bool,
) -> int:
    """Show that MODEL computes what its reference does, and in which precision each operator ran.

    Exit code 1 if the outputs are too far apart, 5 if an operator that the file asks to run in integer runs
    in float.
    """
    own = load(profile) if profile is not None else None
    document = hwopt.verify(
        model,
        against=against,
        inputs=inputs,
        target=target,
        fix=dict(fixed_input(text) for text in fixed),
        own_model=None if own is None else own.model.to_json(),
        import_root=None if own is None else own.path.resolve().parent,
    )
    if as_json:
        print_json(document)
    else:
        click.echo(_text(document))
    lost = document["asked_but_float"]
    if lost and not allow_float:
        first = lost[0]
        raise StageFailedError(
            f"{len(lost)} operators run in float that the model asks to run in integer; the first is "
            f"{first['op']} {first['name']}: {first['cause']}",
            where=str(model),
            fix="leave it in float with quantize --keep-float, or accept it with --allow-float",
        )
    too_far = _too_far(document, min_agreement, min_sqnr)
    for text in too_far:
        click.echo(f"FAIL: {text}", err=True)
    return 1 if too_far else 0


def _too_far(document: dict[str, Any], agreement: float | None, decibels: float) -> list[str]:
    found = []
    given = document["agreement"]
    if agreement is not None and (given is None or given < agreement):
        found.append(
            f"agreement is {'not defined' if given is None else f'{given:.2%}'}, asked for {agreement:.2%}"
        )
    for index, output in enumerate(document["outputs"]):
        if output["sqnr_db"] is not None and output["sqnr_db"] < decibels:
            found.append(f"output {index} is at {output['sqnr_db']:.1f} dB, asked for {decibels:g}")
    return found


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{document['samples']} samples, {document['runtime']} on {document['device']} ({document['tier']})"
    ]
    if document["agreement"] is not None:
        lines.append(f"agreement {document['agreement']:.2%} of the greatest outputs")
    for index, output in enumerate(document["outputs"]):
        ratio = "exact" if output["sqnr_db"] is None else f"{output['sqnr_db']:.1f} dB"
        lines.append(
            f"output {index}: {ratio}, mean cosine {output['mean_cosine']:.5f}, greatest difference "
            f"{output['max_difference']:.3g} of {output['largest']:.3g}"
        )
    worst = ", ".join(f"{w['sample']} ({w['max_difference']:.3g})" for w in document["worst_samples"])
    lines.append(f"worst samples: {worst}")
    weighted = [node for node in document["nodes"] if node["weighted"]]
    integer = sum(node["integer"] for node in weighted)
    lines.append(f"{integer} of {len(weighted)} convolutions and products ran in integer")
    for node in document["nodes"]:
        if node["op"] in _NO_OPERATORS:
            continue
        kind = "integer" if node["integer"] else "float"
        mark = "*" if node["weighted"] else " "
        lines.append(f"  {mark} {kind:8s} {node['op']:26s} {node['name']}")
    lines.append("* convolutions and products")
    return "\n".join(lines)
