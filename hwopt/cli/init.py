"""``hwopt init``: a runnable profile, a policy, and what a CI system needs to call them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from hwopt.cli.console import json_option, print_json
from hwopt.config.profile import load
from hwopt.core.canonical import JSON
from hwopt.errors import ConfigError
from hwopt.store.atomic import write_text

_PROFILE: Final = """\
# yaml-language-server: $schema=profile.schema.json   (hwopt schema > profile.schema.json)
name: "{name}"
data: {data}
model: {model}
{train}candidates:                      # each a chain of steps; [] is the float model
  fp32: []
{candidates}targets: [host-cpu]             # add devices: hwopt hardware list
requirements:                   # a version may be shipped if it keeps all of these
  - {{metric: accuracy_drop, max: 0.01}}
  - {{metric: speedup, target: host-cpu, min: 1.1}}
release:                        # what only you know; it goes into the readiness report
  preprocessing: null
  model_licence: null
  data_licence: null
  rollback: null                # a run or a tag: hwopt runs tag RUN released
"""
_TRAIN: Final = """\
train:
  epochs: 12
  optimizer: {name: adamw, lr: 3.0e-3}
  schedule: {name: one_cycle}
"""
_TRAINED: Final = """\
  int8: [{quantize: {method: ptq}}]
  slim: [{prune: {method: channel, ratio: 0.5}}, {finetune: {epochs: 6}}]
  slim-int8:
    - prune: {method: channel, ratio: 0.5}
    - finetune: {epochs: 6}
    - quantize: {method: qat, epochs: 3}
"""
_GIVEN: Final = "  int8: [{quantize: {method: ptq}}]\n"
_POLICY: Final = """\
name: release
rules:
  - {metric: accuracy_drop, max: 0.01}
  - {metric: speedup, target: host-cpu, min: 1.1}
  - {metric: ready, severity: warn}
  # Against what is shipped today: hwopt gate latest --policy gate.yaml --baseline released
  # - {metric: latency_ms, target: host-cpu, max: 1.05, of: baseline}
"""
_MAKEFILE: Final = """\
run:                            ## train, compress, measure; finished steps are not done again
\thwopt pipeline run profile.yaml --verdict-ok

gate: run                       ## stops where the policy does not hold; the verdict is in gate.xml and summary.md
\thwopt gate latest --policy gate.yaml --junit gate.xml --summary summary.md

.PHONY: run gate
"""
_GITHUB: Final = """\
name: model
on: [push, pull_request]
permissions: {contents: read}
jobs:
  gate:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v5
      - uses: actions/setup-python@v6
        with: {python-version: "3.12"}
      - run: pip install hwopt
      - uses: actions/cache@v4
        with: {path: .hwopt, key: "hwopt-${{ github.sha }}", restore-keys: hwopt-}
      - run: hwopt pipeline run profile.yaml --verdict-ok
      - run: hwopt gate latest --policy gate.yaml --junit gate.xml --summary "$GITHUB_STEP_SUMMARY"
      - if: always()
        uses: actions/upload-artifact@v4
        with: {name: report, path: ".hwopt/runs/*/report.html", include-hidden-files: true}
"""
_GITLAB: Final = """\
model:
  image: python:3.12
  cache: {key: hwopt, paths: [.hwopt]}
  script:
    - pip install hwopt
    - hwopt pipeline run profile.yaml --verdict-ok
    - hwopt gate latest --policy gate.yaml --junit gate.xml --summary summary.md
  artifacts:
    when: always
    paths: [.hwopt/runs/*/report.html, summary.md]
    reports: {junit: gate.xml}
"""
_CI: Final = {
    "github": (".github/workflows/model.yml", _GITHUB),
    "gitlab": (".gitlab-ci.yml", _GITLAB),
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option(
    "--model", help="An .onnx file, module:function, or a name as in `model: {name: …}`.  [default: cnn]"
)
@click.option(
    "--data", help="An .npz file, module:function, or a name as in `data: {name: …}`.  [default: digits]"
)
@click.option("--name", help="Of the profile.  [default: the folder's]")
@click.option("--ci", type=click.Choice(["github", "gitlab", "none"]), default="github", show_default=True)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@json_option
def init(
    folder: Path, model: str | None, data: str | None, name: str | None, ci: str, force: bool, as_json: bool
) -> None:
    """Write profile.yaml, gate.yaml, a Makefile and a CI snippet for your model into FOLDER."""
    onnx = model is not None and model.endswith(".onnx")
    if onnx and data is None:
        raise ConfigError(
            "a trained model needs the data it is judged on",
            fix="give --data FILE.npz with x_train, y_train, x_test, y_test, or --data module:function",
        )
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", name or folder.resolve().name).strip("-.") or "model"
    files = {
        "profile.yaml": _PROFILE.format(
            name=title,
            data=_choice(data or "digits", folder, ".npz", "path"),
            model=_choice(model or "cnn", folder, ".onnx", "onnx"),
            train="" if onnx else _TRAIN,
            candidates=_GIVEN if onnx else _TRAINED,
        ),
        "gate.yaml": _POLICY,
        "Makefile": _MAKEFILE,
    }
    if ci != "none":
        path, text = _CI[ci]
        files[path] = text
    there = [path for path in files if (folder / path).exists()]
    if there and not force:
        raise ConfigError(
            f"{', '.join(there)} is there already", where=str(folder), fix="move it away, or give --force"
        )
    trial = folder / ".profile-on-trial.yaml"  # beside the real one, so that paths mean the same
    write_text(trial, files["profile.yaml"])
    try:
        load(trial)
    finally:
        trial.unlink()
    for path, text in files.items():
        write_text(folder / path, text)
    if as_json:
        print_json({"schema_version": 1, "written": list[JSON](str(folder / path) for path in files)})
        return
    for path in files:
        click.echo(f"written: {folder / path}")
    click.echo("next:    hwopt pipeline run profile.yaml" + ("" if folder == Path() else f"   (in {folder})"))


def _choice(given: str, folder: Path, suffix: str, key: str) -> str:
    """The profile's words for a file, a function or a name."""
    if given.endswith(suffix):
        path = Path(given)
        if not path.is_file():
            raise ConfigError("no such file", where=given, fix=f"give the path of a {suffix} file")
        place = path.resolve()
        near = place.is_relative_to(folder.resolve())
        text = str(place.relative_to(folder.resolve()) if near else place).replace("'", "''")
        return f"{{name: npz, path: '{text}'}}" if suffix == ".npz" else f"{{{key}: '{text}'}}"
    if ":" in given:
        return f'{{factory: "{given}"}}'
    return f'{{name: "{given}"}}'
