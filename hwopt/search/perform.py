"""Try one version here: plan it, do the steps that its metrics need, read the numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.plan import Plan, Row
from hwopt.core.search import STRUCTURAL
from hwopt.core.stage import Progress
from hwopt.data.load import fingerprint
from hwopt.engine.judge import interval_of
from hwopt.engine.perform import Worker, loader
from hwopt.engine.pipeline import execute, new_worker
from hwopt.engine.prepare import Prepared, prepare
from hwopt.engine.results import assemble
from hwopt.errors import ConfigError, EngineMissingError, HwoptError, LockHeldError, ResourceLimitError
from hwopt.numerics.intervals import wilson_interval
from hwopt.plugins import load_reference
from hwopt.search.job import Job, Outcome
from hwopt.search.subject import Subject
from hwopt.search.values import Value
from hwopt.search.versions import known_before
from hwopt.store.store import Store

_STAGES: Final = {
    "accuracy": "evaluate",
    "accuracy_drop": "evaluate",
    "f1": "evaluate",
    "agreement": "evaluate",
    "file_bytes": "export",
    "activation_bytes": "export",
    "parameters": "export",
    "macs": "export",
    "fits": "estimate",
}
_TIMES: Final = frozenset({"latency_ms", "relative_latency", "speedup"})


@dataclass(slots=True, kw_only=True)
class Here:
    """This machine, with a store of its own and one worker process for all jobs."""

    subject: Subject
    store: Store
    progress: Progress
    name: str = "here"
    _worker: Worker | None = field(default=None, init=False)
    _samples: int | None = field(default=None, init=False)

    @property
    def samples(self) -> int:
        """Of the training split."""
        if self._samples is None:
            profile = self.subject.profile
            self._samples = len(
                loader(profile.data, profile.data_where, profile.path.resolve().parent)().x_train
            )
        return self._samples

    def data_digest(self) -> str:
        """Of the data that this machine has under the profile's name."""
        profile = self.subject.profile
        return fingerprint(
            profile.data, loader(profile.data, profile.data_where, profile.path.resolve().parent)
        )

    def perform(self, job: Job) -> Outcome:
        """Do a job. What is wrong with the version is a failed outcome; a full disk or an interrupt is raised."""
        started = time.monotonic()
        try:
            outcome = self._perform(job)
        except (ResourceLimitError, EngineMissingError, LockHeldError):
            raise  # of this machine, and not of the version
        except HwoptError as error:
            first = error.problems[0]
            outcome = Outcome(
                status="failed", reason=first.problem + (f" → {first.fix}" if first.fix else "")
            )
        return Outcome(
            status=outcome.status,
            values=outcome.values,
            reason=outcome.reason,
            notes=outcome.notes,
            cpu_seconds=outcome.cpu_seconds,
            seconds=time.monotonic() - started,
            worker=self.name,
        )

    def check(self, *, refit: bool) -> None:
        """ConfigError where this machine is not the search's target, or has no number for what is asked.

        Args:
            refit: whether the winner is to be judged here too.
        """
        timed, problem = self._looked_at()
        ratios = sorted(self.subject.metrics(trained=True) & {"relative_latency", "speedup"})
        if problem is None and ratios and not timed:
            problem = self._error(
                f"milliseconds there are predicted, and no {ratios[0]}",
                "use latency_ms, or have such a machine work for it: --storage URL --crew queue",
            )
        if problem is None and refit:
            problem = self.unjudgeable()
        if problem is not None:
            raise problem

    def unjudgeable(self) -> ConfigError | None:
        """Why the winner's run could not judge every limit on this machine."""
        timed, problem = self._looked_at()
        times = sorted({str(r.metric) for r in self.subject.limits} & _TIMES)
        if problem is None and times and not timed:
            problem = self._error(
                f"{times[0]} is predicted at most, and the winner's run, which measures, could not judge it",
                "give --no-refit, and run winner.yaml on such a machine",
            )
        return problem

    def _error(self, problem: str, fix: str) -> ConfigError:
        where = self.subject.profile.where("search")
        return ConfigError(f"{self.subject.target} is not this machine: {problem}", where=where, fix=fix)

    def _looked_at(self) -> tuple[bool, ConfigError | None]:
        """Whether the target is timed here, and why nothing of it can be told at all."""
        subject = self.subject
        plan = prepare(subject.narrowed(subject.profile, subject.candidates)).plan
        rows = [r for r in plan.rows if r.target == subject.target and r.candidate in subject.candidates]
        served = [r for r in rows if r.unavailable is None]
        stages = {step.key: step.stage for step in plan.steps}
        timed = bool({"benchmark", "estimate"} & {stages[key] for row in served for key in row.steps})
        if served:
            return timed, None
        first, where = rows[0], subject.profile.where("search")
        fix = first.fix or "search on such a machine, or have one work for it: --storage URL --crew queue"
        return timed, ConfigError(str(first.unavailable), where=where, fix=fix)

    def close(self) -> None:
        """No more jobs."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _perform(self, job: Job) -> Outcome:
        profile, reference, name = self.subject.of_job(job, self.samples)
        metrics = self.subject.metrics(trained=job.trained)
        if job.trained and not next(c.chain for c in profile.candidates if c.name == name):
            metrics -= STRUCTURAL  # known before training, and the network has the same structure
        notes: tuple[str, ...] = ()
        if not job.trained:
            known, deciding = known_before(self.subject.changed(job.sample), name)
            if metrics - known:
                said = ", ".join(sorted(metrics - known))
                notes = (f"not known before training, which {' and '.join(deciding)} waits for: {said}",)
            metrics &= known
            if not metrics:
                return Outcome(status="ok", notes=notes)
        prepared = prepare(profile, reference)
        row = next(r for r in prepared.plan.rows if r.candidate == name)
        if row.unavailable is not None:
            raise ConfigError(row.unavailable, where=self.subject.profile.where("search"), fix=row.fix)
        hardware = prepared.profile.targets[0].hardware or prepared.host_profile
        chain = chain_of(prepared.plan, row)
        wanted = steps_for(prepared.plan, row, metrics, chain)
        if not wanted:
            return Outcome(status="ok", notes=notes)
        if self._worker is None:
            self._worker = new_worker(prepared)
        with self.store.locked(3600.0):
            state = execute(prepared, self.store, self.progress, wanted, self._worker)
        failed = next((state.failures[k] for k in row.steps if k in state.failures), None)
        if failed is not None:
            return Outcome(
                status="failed", reason=failed.problem + (f" → {failed.fix}" if failed.fix else "")
            )
        result = assemble(row, [state.done[k].facts for k in row.steps if k in state.done], None, hardware)
        values = {m: v for m in metrics if (v := value_of(m, result)) is not None}
        trained = [state.done[key].facts for key in chain if key in state.done]
        if "validation_accuracy" in metrics and trained:
            links = next(c.chain for c in profile.candidates if c.name == name)
            last: Any = links[-1].config if links else profile.source.config
            left = self.samples - self.samples // self.subject.settings.validation.folds
            value = validation_accuracy(trained[-1], last, left)
            values |= {} if value is None else {"validation_accuracy": value}
        spent = sum(
            float((state.done[key].facts.get("training") or {}).get("cpu_seconds", 0.0))
            for key in chain
            if key in state.done and state.entries[key]["status"] == "ok"
        )
        model = next(
            (state.done[k] for k in row.steps if k in state.done and "model" in state.done[k].artifacts), None
        )
        if (
            "latency_ms" in metrics
            and "latency_ms" not in values
            and model is not None
            and hardware is not None
        ):
            path = model.artifacts["model"].path
            values["latency_ms"] = predicted(path, hardware, prepared)
        if unknown := sorted(metrics - values.keys() - {"validation_accuracy"}):
            text = f"{', '.join(unknown)} cannot be known for {self.subject.target} on this machine"
            return Outcome(status="failed", reason=text, values=values, cpu_seconds=spent, notes=notes)
        return Outcome(status="ok", values=values, cpu_seconds=spent, notes=notes)


def chain_of(plan: Plan, row: Row) -> list[str]:
    """Keys of the steps that make a row's network, the first one first: training, compression."""
    steps = {step.key: step for step in plan.steps}
    exports = [steps[key] for key in row.steps if steps[key].stage == "export"]
    source = exports[-1].inputs.get("checkpoint") if exports else None
    found: list[str] = []
    while source is not None:
        found.insert(0, source.step)
        source = steps[source.step].inputs.get("checkpoint")
    return found


def steps_for(plan: Plan, row: Row, metrics: set[str], chain: Sequence[str]) -> set[str]:
    """Keys of the steps that tell the metrics of a row."""
    stages = {step.key: step.stage for step in plan.steps}
    mine = {key: stages[key] for key in row.steps}
    timed = "estimate" if "estimate" in mine.values() else "benchmark"
    needed = {_STAGES.get(metric, timed if metric in _TIMES else "") for metric in metrics}
    if metrics & _TIMES and timed not in mine.values():
        needed.add("export")  # a time is predicted from the file
    found = {key for key, stage in mine.items() if stage in needed}
    if "validation_accuracy" in metrics:
        found |= set(chain[-1:])
    return found


def value_of(metric: str, result: Mapping[str, Any]) -> Value | None:
    """A metric of an assembled row."""
    details = result["details"]
    if metric == "fits":
        fits = details.get("fits")
        return (
            None
            if fits is None
            else Value(estimate=float(fits), low=float(fits), high=float(fits), tier="estimated")
        )
    tier = str(result["tier"] or Tier.MEASURED.value)
    if metric in {"file_bytes", "parameters", "macs", "activation_bytes"}:
        # Counted in the file; only what activations need at once is an estimate.
        tier = Tier.ESTIMATED.value if metric == "activation_bytes" else Tier.MEASURED.value
    ends = interval_of(metric, result)
    if metric in {"speedup", "relative_latency"} and ends is None and _is_the_reference(details):
        return Value(estimate=1.0, low=1.0, high=1.0, tier=tier)
    if ends is None:
        return None
    if metric == "agreement":
        return _share(float(result[metric]), int((details.get("evaluation") or {}).get("samples") or 0))
    if metric == "relative_latency":
        estimate = 1 / float(result["speedup"]["estimate"])
    elif metric == "speedup":
        estimate = float(result["speedup"]["estimate"])
    elif metric == "latency_ms":
        estimate = float(result["latency_ms"]["p50"])
    elif metric == "activation_bytes":
        estimate = ends[0]
    else:
        estimate = float(result[metric])
    return Value(estimate=estimate, low=min(ends[0], estimate), high=max(ends[1], estimate), tier=tier)


def _share(estimate: float, samples: int) -> Value:
    """A share of samples with Wilson's interval."""
    low, high = wilson_interval(round(estimate * samples), samples) if samples else (0.0, 1.0)
    return Value(
        estimate=estimate, low=min(low, estimate), high=max(high, estimate), tier=Tier.MEASURED.value
    )


def _is_the_reference(details: Mapping[str, Any]) -> bool:
    benchmark = details.get("benchmark") or {}
    digest = benchmark.get("model_digest")
    return digest is not None and digest == benchmark.get("baseline_digest")


def validation_accuracy(facts: Mapping[str, Any], config: Any, samples: int) -> Value | None:
    """Accuracy of a training on its own validation split, of the weights that it kept; of so many samples in all."""
    epochs = facts.get("finetune_history") or facts.get("history") or ()
    seen = [e for e in epochs if e.get("validation_accuracy") is not None]
    if not seen:
        return None
    kept = seen[-1]
    if getattr(config, "early_stopping", None) is not None:
        finite = [e for e in seen if e.get("validation_loss") is not None]
        kept = min(finite, key=lambda e: float(e["validation_loss"]), default=kept)
    return _share(float(kept["validation_accuracy"]), round(samples * config.validation_share))


def predicted(model: Path, hardware: HardwareProfile, prepared: Prepared) -> Value:
    """Milliseconds of a call on a device that is not here; see docs/prediction.md.

    Raises:
        ConfigError: the device's profile does not say how fast it is.
    """
    kernels = load_reference("hwopt.prediction.work:kernels")
    predict = load_reference("hwopt.prediction.predict:predict")
    batch, threads = (getattr(prepared.profile.benchmark, name, 1) for name in ("batch", "threads"))
    seconds = predict(kernels(load_reference("onnx:load")(model), batch), hardware, batch, threads).seconds
    return Value(
        estimate=seconds.estimate * 1e3,
        low=seconds.low * 1e3,
        high=seconds.high * 1e3,
        tier=Tier.PREDICTED.value,
    )
