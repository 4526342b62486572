"""A release folder: the model, what it promises, and proof of both."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hwopt
from hwopt.api.versus import Version, find
from hwopt.archives import unpack_zip
from hwopt.core.canonical import digest_of_file, pretty_json
from hwopt.errors import ConfigError, HwoptError, UnsafeInputError
from hwopt.model_check import check_model
from hwopt.model_lint import contract
from hwopt.report.render import render
from hwopt.store.store import Store

MANIFEST: Final = "manifest.json"
_MOST_BYTES: Final = 1 << 20  # of a manifest or contract
_MOST_RECORD: Final = 1 << 28


def bundle(
    run: str,
    output: str | Path,
    *,
    store: str | Path = ".hwopt",
    target: str | None = None,
    candidate: str | None = None,
) -> dict[str, Any]:
    """Write a version of a run as a folder, or as a zip file where ``output`` ends in .zip.

    Holds ``model.onnx``, ``contract.json`` (inputs, outputs, operator sets, and what the profile declares),
    ``record.json``, ``report.html``, ``report.md`` and ``manifest.json`` with the SHA-256 of each.

    Args:
        target: whose version; may be left out where only one target has a version to ship.
        candidate: another version than the one to ship.
    Returns:
        The manifest.
    Raises:
        ConfigError: no version to ship, several targets, files that are gone or damaged, or ``output`` exists.
    """
    place, out = Store(Path(store)), Path(output)
    record = place.record(run)
    version = _version(record, target, candidate)
    model = version.output(place, "export", "model")
    if model is None:
        raise ConfigError(
            f"the file of {version} is not in the store, or is damaged", fix="run the profile again"
        )
    if out.exists():
        raise ConfigError(f"{out} exists", fix="give a name that is not there")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bundle-") as name:
        folder = Path(name) / "content"
        folder.mkdir()
        shutil.copyfile(model, folder / "model.onnx")
        promise = {"schema_version": 1, **contract(folder / "model.onnx"), "declared": _declared(record)}
        (folder / "contract.json").write_text(pretty_json(promise))
        for form, file in (("json", "record.json"), ("html", "report.html"), ("md", "report.md")):
            (folder / file).write_text(render(record, form), encoding="utf-8")
        manifest = {
            "schema_version": 1,
            "hwopt": hwopt.__version__,
            "run": record["run"],
            "name": record["name"],
            "candidate": version.row["candidate"],
            "target": version.row["target"],
            "readiness": ((record.get("readiness") or {}).get("targets") or {}).get(version.row["target"]),
            "files": {
                path.name: {"digest": digest_of_file(path), "bytes": path.stat().st_size}
                for path in sorted(folder.iterdir())
            },
        }
        (folder / MANIFEST).write_text(pretty_json(manifest))
        if out.suffix == ".zip":
            _zipped(folder, out)
        else:
            shutil.move(folder, out)
    return manifest


def _version(record: Mapping[str, Any], target: str | None, candidate: str | None) -> Version:
    shipped = {t: c for t, c in record["choice"].items() if c or candidate}
    if target is None:
        if len(shipped) != 1:
            raise ConfigError(
                f"the run ships {len(shipped)} versions" + (f": on {', '.join(shipped)}" if shipped else ""),
                fix="name one: --target TARGET" if shipped else "name one: --target TARGET --candidate NAME",
            )
        (target,) = shipped
    name = candidate or record["choice"].get(target)
    found = find(record, target, name)
    if found is None or found.row["status"] != "ok":
        known = ", ".join(
            f"{r['candidate']} on {r['target']}" for r in record["results"] if r["status"] == "ok"
        )
        raise ConfigError(f"no version {name or 'to ship'} on {target}", fix=f"choose one of: {known}")
    return found


def _declared(record: Mapping[str, Any]) -> dict[str, Any]:
    release = record.get("release") or {}
    return {
        name: release.get(name)
        for name in ("inputs", "outputs", "preprocessing", "model_licence", "data_licence")
    }


def _zipped(folder: Path, out: Path) -> None:
    """The same contents give the same archive, byte for byte."""
    temporary = folder.parent / "bundle.zip"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(info, path.read_bytes())
    temporary.replace(out)


def check_bundle(path: str | Path) -> dict[str, Any]:
    """Prove a release folder or zip file: nothing missing, added or changed; a sound model that keeps its contract.

    Returns:
        The manifest.
    Raises:
        UnsafeInputError: something in it is not what the manifest says.
        ConfigError: no bundle.
    """
    place = Path(path)
    if place.is_file():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "content"
            unpack_zip(place, folder)
            return _proven(folder, str(place))
    if not place.is_dir():
        raise ConfigError(
            "no such folder or zip file", where=str(place), fix="give what `hwopt bundle` wrote"
        )
    return _proven(place, str(place))


def _proven(folder: Path, where: str) -> dict[str, Any]:
    manifest = _json(folder / MANIFEST, where)
    files = manifest.get("files")
    if manifest.get("schema_version") != 1 or not isinstance(files, dict) or "model.onnx" not in files:
        raise ConfigError(f"{MANIFEST} is none of this hwopt's", where=where, fix="upgrade hwopt")
    for file in folder.rglob("*"):
        if file.is_symlink() or not file.is_file():
            raise UnsafeInputError(f"{file.name} is no plain file", where=where, fix="write the bundle again")
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*")} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(files.keys() - present)]
    problems += [f"{name} was added" for name in sorted(present - files.keys())]
    problems += [
        f"{name} was changed"
        for name in sorted(present & files.keys())
        if not isinstance(files[name], dict) or digest_of_file(folder / name) != files[name].get("digest")
    ]
    if problems:
        raise UnsafeInputError("; ".join(problems), where=where, fix="write the bundle again: hwopt bundle")
    record = _json(folder / "record.json", where, most=_MOST_RECORD)
    said = {
        (r.get("candidate"), r.get("target")): r for r in record.get("results", []) if isinstance(r, dict)
    }
    row = said.get((manifest.get("candidate"), manifest.get("target")))
    header = (manifest.get("run"), manifest.get("name")) == (record.get("run"), record.get("name"))
    words = ((record.get("readiness") or {}).get("targets") or {}).get(manifest.get("target"))
    if row is None or not header or manifest.get("readiness") != words:
        raise UnsafeInputError(f"{MANIFEST} says other things than the record", where=where)
    wanted = row["details"]["evaluation"]["model_digest"]
    if files["model.onnx"]["digest"] != wanted:
        raise UnsafeInputError("the model is not the one that the record evaluated", where=where)
    model = folder / "model.onnx"
    try:
        check_model(model)
    except HwoptError as error:
        raise error.at(where) from None
    promise = _json(folder / "contract.json", where)
    kept = contract(model)
    broken = [key for key, value in kept.items() if promise.get(key) != value]
    if broken:
        raise UnsafeInputError(f"the model breaks its contract: {', '.join(broken)}", where=where)
    return manifest


def _json(path: Path, where: str, most: int = _MOST_BYTES) -> dict[str, Any]:
    try:
        if path.stat().st_size > most:
            raise UnsafeInputError(f"{path.name} is too large", where=where)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"it holds no {path.name}", where=where, fix="give what `hwopt bundle` wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not readable: {error}", where=where) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path.name} is no JSON object", where=where)
    return value
