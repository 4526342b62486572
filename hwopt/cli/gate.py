"""``hwopt gate RUN``."""

from __future__ import annotations

from pathlib import Path

import click

import hwopt
from hwopt.cli.console import VERDICT_CODES, json_option, print_json, progress, quiet_option, store_option
from hwopt.core.canonical import pretty_json
from hwopt.report.gate import junit, lines, summary
from hwopt.store.atomic import append_text, write_text
from hwopt.store.store import Store


@click.command()
@click.argument("run", default="latest")
@click.option("--policy", type=click.Path(path_type=Path), required=True, help="The rules, a YAML file.")
@click.option(
    "--baseline", metavar="RUN[:CANDIDATE]", help="A run or tag to hold ratios against; it is measured anew."
)
@click.option(
    "--across-versions", is_flag=True, help="Compare with a baseline made by other library versions."
)
@click.option(
    "--junit", "junit_file", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML."
)
@click.option(
    "--summary", "summary_file", type=click.Path(path_type=Path, dir_okay=False), help="Append Markdown."
)
@click.option("--inconclusive-ok", is_flag=True, help="Exit 0, not 3, when the verdict is INCONCLUSIVE.")
@store_option
@json_option
@quiet_option
def gate(
    run: str,
    policy: Path,
    baseline: str | None,
    across_versions: bool,
    junit_file: Path | None,
    summary_file: Path | None,
    inconclusive_ok: bool,
    store: Path,
    as_json: bool,
    quiet: bool,
) -> int:
    """Hold a recorded run against a policy: exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    found = hwopt.gate(
        run,
        policy=policy,
        store=store,
        baseline=baseline,
        across_versions=across_versions,
        progress=progress(quiet),
    )
    write_text(Store(store).run_folder(found["run"]) / "gate.json", pretty_json(found))
    if junit_file is not None:
        write_text(junit_file, junit(found))
    if summary_file is not None:
        append_text(summary_file, summary(found))
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            click.echo(line)
    if found["verdict"] == "INCONCLUSIVE" and inconclusive_ok:
        click.echo("warning: the verdict is INCONCLUSIVE; exit code 0 was asked for", err=True)
        return 0
    return VERDICT_CODES[found["verdict"]]
