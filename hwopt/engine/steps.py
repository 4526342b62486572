"""Steps of a plan as a user sees them: which are meant, which are finished, and why one would run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwopt.core.plan import Plan, Step
from hwopt.errors import ConfigError
from hwopt.plugins import did_you_mean
from hwopt.store.store import Finished, Store
from hwopt.tracking.ledger import flat


def finished_keys(plan: Plan, store: Store) -> set[str]:
    """Keys of the steps that are finished, their inputs finished too and their files whole."""
    done: dict[str, Finished] = {}
    for step in plan.steps:
        inputs = input_digests(step, done)
        found = None if inputs is None else store.finished(step.key, inputs)
        if found is not None:
            done[step.key] = found
    return set(done)


def input_digests(step: Step, done: Mapping[str, Finished]) -> dict[str, str] | None:
    """Digest of every input; None where one is not there yet."""
    if any(source.step not in done for source in step.inputs.values()):
        return None
    return {port: done[source.step].artifacts[source.port].digest for port, source in step.inputs.items()}


def named(plan: Plan, name: str) -> list[Step]:
    """The steps that a user means: a stage, a label, a candidate's name in it, or the beginning of a key.

    Raises:
        ConfigError: no step is meant.
    """
    for means in (
        lambda s: name == s.stage,
        lambda s: name == s.label,
        lambda s: f" {name} " in f" {s.label} ",
        lambda s: len(name) >= 4 and s.key.partition(":")[2].startswith(name),
    ):
        found = [step for step in plan.steps if means(step)]
        if found:
            return found
    known = [*dict.fromkeys(s.stage for s in plan.steps), *(s.label for s in plan.steps)]
    raise ConfigError(f"no step {name!r} in the plan", fix=did_you_mean(name, known))


def explain(plan: Plan, store: Store, name: str) -> list[dict[str, Any]]:
    """Why each step that ``name`` means is finished or would run: what its key is made of, held against the nearest
    finished step of the same stage."""
    finished = finished_keys(plan, store)
    others = store.step_entries()
    labels = {step.key: step.label for step in plan.steps}
    found: list[dict[str, Any]] = []
    for step in named(plan, name):
        reasons: list[str] = []
        if step.key not in finished:
            entry = store.step_entry(step.key)
            undone = [labels[s.step] for s in step.inputs.values() if s.step not in finished]
            if undone:
                reasons.append(f"its input is to be made: {', '.join(dict.fromkeys(undone))}")
            if entry is not None and not undone:
                whole = all(store.whole(o["digest"]) for o in entry["outputs"].values())
                reasons.append(
                    "its input was made anew, with other contents"
                    if whole
                    else "one of its files is damaged or gone"
                )
            if entry is None:
                reasons += _nearest(step, others)
        found.append(
            {
                "key": step.key,
                "label": step.label,
                "state": "finished" if step.key in finished else "to do",
                "reasons": reasons,
            }
        )
    return found


def _nearest(step: Step, others: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs from the finished step of the same stage that is most like this one."""
    flat_mine = flat(step.basis)
    best: list[str] | None = None
    for entry in others:
        basis = entry.get("basis") or {}
        if basis.get("stage") != step.stage:
            continue
        flat_other = flat(basis)
        keys = sorted(k for k in {*flat_mine, *flat_other} if flat_mine.get(k) != flat_other.get(k))
        said = [
            f"{k}: {_brief(flat_other.get(k))} then, {_brief(flat_mine.get(k))} now ({entry['label']})"
            for k in keys
        ]
        if best is None or len(said) < len(best):
            best = said
    return ["no such step was done in this store"] if best is None else best


def _brief(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def after(plan: Plan, first: Sequence[Step]) -> set[str]:
    """Keys of these steps and of all that depend on them."""
    found = {step.key for step in first}
    for step in plan.steps:  # in an order in which they can run
        if any(source.step in found for source in step.inputs.values()):
            found.add(step.key)
    return found


def before(plan: Plan, last: Sequence[Step]) -> set[str]:
    """Keys of these steps and of all that they depend on."""
    found = {step.key for step in last}
    for step in reversed(plan.steps):
        if step.key in found:
            found |= {source.step for source in step.inputs.values()}
    return found
