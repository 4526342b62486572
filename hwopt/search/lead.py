"""The one who leads a search: proposes, refuses what cannot fit, gives up early, keeps the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.crossings import crossing
from hwopt.core.progress import sparkline
from hwopt.core.search import CANDIDATE, STRUCTURAL
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError
from hwopt.search.crews import Crew
from hwopt.search.job import Job, Outcome, Sample
from hwopt.search.ledger import Ledger, Trial
from hwopt.search.samplers import COUNTABLE, Past, Proposer, is_of_training
from hwopt.search.subject import Subject
from hwopt.search.values import Value, best, dominates, front, is_ahead, merged, surely_beyond, surely_within

_REFUSALS: Final = 4  # proposals without training, for every trial that may be trained
_POLL_SECONDS: Final = 5.0


@dataclass(slots=True, kw_only=True)
class Lead:
    """Runs a search to its end; everything that it knows is in the ledger.

    Args:
        on_trial: called after every trial, with all of them.
        stopping: asked again and again; a text ends the search with it as the reason, an error at once.
    """

    subject: Subject
    ledger: Ledger
    crew: Crew
    progress: Progress
    on_trial: Callable[[Sequence[Trial]], None] = lambda trials: None
    stopping: Callable[[], str | None] = lambda: None
    trials: list[Trial] = field(default_factory=list)
    _busy: dict[str, int] = field(default_factory=dict)  # key of a job -> trial
    _structures: dict[str, str | None] = field(default_factory=dict)

    @property
    def proposer(self) -> Proposer:
        """What proposes, with its defaults."""
        return Proposer(
            settings=self.subject.settings,
            objectives=self.subject.objectives,
            limits=tuple(str(r) for r in self.subject.limits),
        )

    def run(self) -> str:
        """Search until the trials, the time or the patience are over; why it ended.

        Raises:
            ConfigError: no version that can be trained was found at all.
        """
        self.trials = self.ledger.trials()
        started, settings = time.monotonic(), self.subject.settings
        for trial in [t for t in self.trials if t.status == "running"]:
            self._advance(trial)
        final: str | None = None  # nothing is begun any more
        exhausted: str | None = None  # nothing new; what was begun goes on
        while True:
            over = settings.seconds is not None and time.monotonic() - started >= settings.seconds
            final = final or ("the time is over" if over else self.stopping())
            # Asked anew each time: a trial that turns out not to fit makes room for another.
            why = final or exhausted or self._enough()
            while why is None and self.crew.room() > 0:
                sample = self._next()
                if sample is None:
                    why = exhausted = self._exhausted()
                    break
                crossing("search.proposed")
                trial = self.ledger.begin(sample)
                crossing("search.begun")
                self.trials.append(trial)
                self._advance(trial)
                why = self._enough()
            if final is not None:  # what nobody has begun is left for another time
                for job in self.crew.withdraw():
                    self._busy.pop(job.key, None)
            if not self._busy:
                if why is not None:
                    break
                continue
            for job, outcome in self.crew.wait(_POLL_SECONDS):
                self._receive(job, outcome)
        if final is None:  # who was stopped early has not looked everywhere
            self._nothing_fits()
        return why

    # --- what next --------------------------------------------------------------------------------------

    def _next(self) -> Sample | None:
        if not self.trials:
            defaults = self.subject.defaults()
            axes = self.subject.settings
            if defaults and all(n in defaults for n in axes.ordered() if axes.is_open(n, defaults)):
                return defaults
        return self.proposer.propose([self._past(trial) for trial in self.trials], self._structure)

    def _exhausted(self) -> str:
        """Why there is nothing to propose."""
        refused = any(t.status == "infeasible" for t in self.trials)
        if self.subject.settings.cells > COUNTABLE:
            return "hardly anything new is proposed" + (" that may keep the limits" if refused else "")
        return f"every version {'that may keep the limits' if refused else 'of the space'} was tried"

    def _structure(self, sample: Sample) -> str | None:
        key = canonical_json({n: v for n, v in sample.items() if not is_of_training(n)})
        if key not in self._structures:
            try:
                self._structures[key] = self.subject.structure(sample)
            except ConfigError:  # no profile can be so, by what it says of training; the trial will say it
                return None
        return self._structures[key]

    def _past(self, trial: Trial) -> Past:
        values = [trial.all_values.get(o.metric) for o in self.subject.objectives]
        known = trial.status == "ok" and all(v is not None for v in values)
        same = self.subject.rung_metric == self.subject.objectives[0].metric
        given_up = trial.status == "rejected" and same
        steps = {i + 1: v.estimate for i, v in enumerate(trial.rungs.values())} if given_up else {}
        return Past(
            sample=trial.sample,
            structure=self._structure(trial.sample),
            refused=trial.status == "infeasible",
            running=trial.status == "running",
            values=tuple(v.estimate for v in values if v is not None) if known else None,
            excesses=self.subject.excesses(trial.all_values),
            rungs=steps,
        )

    def _enough(self) -> str | None:
        """Why no other trial is begun; None where one is."""
        settings = self.subject.settings
        trained = [t for t in self.trials if t.status != "infeasible"]
        if len(trained) >= settings.trials:
            return f"{settings.trials} trials are done"
        if len(self.trials) >= settings.trials * (1 + _REFUSALS):
            return f"{len(self.trials) - len(trained)} proposals could not keep the limits"
        stop = settings.stop
        if stop is not None:
            done = [t for t in self.trials if t.status not in {"running", "infeasible"}]
            if len(done) > stop.patience and self._improved(done) + stop.patience < len(done):
                return f"the last {stop.patience} trials brought nothing better"
        return None

    def _improved(self, done: Sequence[Trial]) -> int:
        """Place of the last trial that made the best, or the front, better."""
        objectives, stop = self.subject.objectives, self.subject.settings.stop
        gain, last = stop.gain if stop is not None else 0.0, 0
        first, sign = objectives[0].metric, 1 if objectives[0].rises else -1
        top: float | None = None
        kept: list[Trial] = []
        for place, trial in enumerate(done):
            if trial.status != "ok" or not self.keeps(trial, surely=False):
                continue
            if len(objectives) > 1:
                if all(self._gains(trial, other, gain) for other in kept):
                    last = place
                kept.append(trial)
                continue
            value = sign * trial.all_values[first].estimate
            if top is None or value > top + gain * abs(top):
                top, last = value, place
        return last

    def _gains(self, trial: Trial, other: Trial, gain: float) -> bool:
        """Whether a trial's estimate is better than another's in some objective, by more than a share of it."""
        pairs = [
            (1 if o.rises else -1, trial.all_values[o.metric].estimate, other.all_values[o.metric].estimate)
            for o in self.subject.objectives
        ]
        return any(sign * (mine - theirs) > gain * abs(theirs) for sign, mine, theirs in pairs)

    def _nothing_fits(self) -> None:
        refused = [t for t in self.trials if t.status == "infeasible"]
        if not refused or len(refused) < len(self.trials):
            return
        nearest = min(
            refused, key=lambda t: sum(max(0.0, e) for e in self.subject.excesses(t.known).values())
        )
        missed = [
            f"{r}: {_said(nearest.known.get(r.metric))}"
            for r in self.subject.limits
            if r.metric in nearest.known
        ]
        raise ConfigError(
            f"none of {len(refused)} versions can keep the limits, and none was trained; nearest is "
            f"{described(nearest.sample)} with {'; '.join(missed)}",
            where=self.subject.profile.where("search"),
            fix="loosen the limit, or widen search.space towards smaller versions",
        )

    # --- one trial --------------------------------------------------------------------------------------

    def _advance(self, trial: Trial) -> None:
        """Submit the trial's next job, or finish it."""
        job = self._job(trial)
        if job is None:
            self._close(trial)
            return
        self._busy[job.key] = trial.number
        self.crew.submit(job)

    def _job(self, trial: Trial) -> Job | None:
        """The next job of a trial; None where its fate is decided, which is then in its status."""
        subject, seen = self.subject, self.subject.settings.validation
        if subject.metrics(trained=False):
            first = Job(trial=trial.number, sample=trial.sample, trained=False)
            found = trial.runs.get(_key(first))
            if found is None:
                return first
            if self._failed(trial, found):
                return None
            trial.known = dict(found.values)
            beyond = [r for r in subject.limits if surely_beyond(r, trial.known.get(r.metric))]
            if beyond:
                trial.status = "infeasible"
                trial.reason = "; ".join(f"{r}: {_said(trial.known.get(r.metric))}" for r in beyond)
                return None
        halving = subject.settings.halving
        for share in halving.rungs if halving is not None else (1.0,):
            jobs = [
                Job(trial=trial.number, sample=trial.sample, trained=True, share=share, fold=fold, seed=seed)
                for fold in range(seen.used)
                for seed in range(seen.seeds)
            ]
            for job in jobs:
                found = trial.runs.get(_key(job))
                if found is None:
                    return job
                if self._failed(trial, found):
                    return None
            values = merged([trial.runs[_key(job)].values for job in jobs], folds=seen.used)
            lacking = [m for m in self._needed(share) if m not in {**trial.known, **values}]
            if lacking:
                trial.status, trial.reason = "failed", f"the training gave no {' and no '.join(lacking)}"
                return None
            if share == 1:
                trial.values, trial.status = values, "ok"
            elif (rung := f"{share:.4f}") not in trial.passed:
                trial.rungs[rung] = values[subject.rung_metric]
                if self._given_up(trial, share, values):
                    return None
                trial.passed.append(rung)  # once, by what was known then: others may overtake it later
        return None

    def _needed(self, share: float) -> list[str]:
        """Metrics without which nothing can be decided."""
        if share < 1:
            return [self.subject.rung_metric]
        asked = [str(o.metric) for o in self.subject.objectives] + [
            str(r.metric) for r in self.subject.limits
        ]
        return list(dict.fromkeys(asked))

    def _failed(self, trial: Trial, outcome: Outcome) -> bool:
        trial.notes = list(dict.fromkeys([*trial.notes, *outcome.notes]))
        if outcome.status != "ok":
            trial.status, trial.reason = "failed", outcome.reason
        return outcome.status != "ok"

    def _given_up(self, trial: Trial, share: float, values: dict[str, Value]) -> bool:
        """Whether a trial ends at a rung.

        With one objective: it is not among the best there. With several: it is surely dominated; or it is neither among
        the best nor on the front of the estimates.
        """
        halving = self.subject.settings.halving
        rung = f"{share:.4f}"
        if halving is None:
            return False
        others = [t for t in self.trials if rung in t.rungs]
        mine = trial.rungs[rung].estimate
        place = 1 + sum(t.rungs[rung].estimate > mine for t in others if t is not trial)
        kept = max(1, int(len(others) / halving.factor))
        before = [t for t in others if t.number < trial.number and self._went_on(t, rung)]
        # A sampler that learns proposes better and better versions: by their place alone, nearly all would go on.
        behind = place > kept or (place > 1 and len(before) >= kept)
        placed = f"place {place} of {len(others)} at {share:.0%} of the training"
        objectives = self.subject.objectives
        if len(objectives) == 1:
            trial.reason = placed if behind else None
        else:
            ours = {**trial.known, **values}
            seen = [(t.number, self._at_rung(t, share)) for t in others if t is not trial]
            surely = [n for n, theirs in seen if theirs and dominates(theirs, ours, objectives)]
            ahead = [n for n, theirs in seen if theirs and is_ahead(theirs, ours, objectives)]
            if surely:
                trial.reason = f"dominated by trial {surely[0]} at {share:.0%} of the training"
            elif behind and ahead:
                trial.reason = f"{placed}, and trial {ahead[0]} is ahead in everything"
        if trial.reason is not None:
            trial.status = "rejected"
        return trial.reason is not None

    @staticmethod
    def _went_on(trial: Trial, rung: str) -> bool:
        """Whether a trial was trained beyond a rung."""
        return trial.status in {"ok", "running", "failed"} or list(trial.rungs)[-1] != rung

    def _at_rung(self, trial: Trial, share: float) -> dict[str, Value]:
        runs = [run.values for key, run in trial.runs.items() if f'"share":{share}' in key]
        folds = self.subject.settings.validation.used
        return {**trial.known, **merged(runs, folds=folds)} if runs else {}

    def _receive(self, job: Job, outcome: Outcome) -> None:
        number = self._busy.pop(job.key, None)
        trial = next((t for t in self.trials if t.number == number), None)
        if trial is None or trial.status != "running":
            return  # twice done, after a lease ran out
        self.stopping()  # raises where another process leads by now: what follows would be written over its words
        trial.runs[_key(job)] = outcome
        crossing("search.worked")
        self.ledger.note(trial)
        crossing("search.noted")
        self._advance(trial)

    def _close(self, trial: Trial) -> None:
        crossing("search.decided")
        self.ledger.finish(trial)
        crossing("search.finished")
        self.on_trial(self.trials)
        values = "  ".join(
            f"{o.metric} {_said(trial.all_values.get(o.metric))}" for o in self.subject.objectives
        )
        leader = self.winner()
        history = sparkline(self.history(), 20)
        lead = f"  best: trial {leader.number} {history}" if leader is not None else ""
        what = values if trial.status == "ok" else trial.reason or ""
        self.progress(f"trial {trial.number}: {trial.status}, {what}  ({described(trial.sample)}){lead}")

    # --- what came of it --------------------------------------------------------------------------------

    def keeps(self, trial: Trial, *, surely: bool) -> bool:
        """Whether a trial keeps all limits: by its whole intervals, or by its estimates."""
        values = trial.all_values
        if surely:
            return all(surely_within(r, values.get(r.metric)) for r in self.subject.limits)
        return all(e <= 0 for e in self.subject.excesses(values).values()) and all(
            r.metric in values for r in self.subject.limits
        )

    def _may_keep(self, trial: Trial) -> bool | None:
        """By the estimates; None of what was not trained to its end."""
        return self.keeps(trial, surely=False) if trial.status == "ok" else None

    def eligible(self) -> list[Trial]:
        """Trained trials that surely keep the limits; where there is none, those that keep them by estimate."""
        done = [t for t in self.trials if t.status == "ok" and self._complete(t)]
        sure = [t for t in done if self.keeps(t, surely=True)]
        return sure or [t for t in done if self.keeps(t, surely=False)]

    def _complete(self, trial: Trial) -> bool:
        return all(o.metric in trial.all_values for o in self.subject.objectives)

    def front(self) -> list[Trial]:
        """Those that none of the others dominates by their intervals."""
        found = self.eligible()
        return [found[i] for i in front([t.all_values for t in found], self.subject.objectives)]

    def winner(self) -> Trial | None:
        """The best of the first objective on the front of those that keep the limits.

        Where times do not differ surely, the smaller file; then the better estimate; of equal ones that of the other
        objectives, how far training keeps the limits, and the earlier trial.
        """
        found = self.front() or self.eligible()  # of three objectives, each may dominate the next in a circle
        if not found:
            return None
        objective = self.subject.objectives[0]
        first, level = best([t.all_values for t in found], objective)
        equal = (
            objective.metric in STRUCTURAL
        )  # a time that is as short serves as well; an accuracy may be higher

        trained = {str(r) for r in self.subject.limits if r.metric not in STRUCTURAL}

        def merit(place: int) -> tuple[float, ...]:
            values = found[place].all_values
            size = values["file_bytes"].estimate if "file_bytes" in values and equal else 0.0
            estimates = [(-1 if o.rises else 1) * values[o.metric].estimate for o in self.subject.objectives]
            beyond = sum(e for name, e in self.subject.excesses(values).items() if name in trained)
            return (size, *estimates, beyond, found[place].number)

        return found[min(level, key=merit)] if level else found[first]

    def sure(self, trial: Trial) -> bool | None:
        """Whether the winner is surely better than what the profile itself says; None where that was not tried."""
        defaults = dict(self.subject.defaults())
        start = next((t for t in self.trials if dict(t.sample) == defaults and t.status == "ok"), None)
        if start is None or start is trial:
            return None
        return dominates(trial.all_values, start.all_values, self.subject.objectives[:1])

    def history(self) -> list[float]:
        """The best first objective after each trained trial that keeps the limits, as less is better turned round."""
        objective = self.subject.objectives[0]
        sign = 1 if objective.rises else -1
        found: list[float] = []
        for trial in self.trials:
            if (
                trial.status == "ok"
                and self.keeps(trial, surely=False)
                and objective.metric in trial.all_values
            ):
                value = sign * trial.all_values[objective.metric].estimate
                found.append(max(value, found[-1]) if found else value)
        return found

    def summary(self, why: str | None) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        winner = self.winner()
        return {
            "schema_version": 1,
            "search": self.ledger.name,
            "ended": why,
            "sampler": self.proposer.sampler,
            "target": self.subject.target,
            "objectives": [
                {"metric": o.metric, "goal": "max" if o.rises else "min"} for o in self.subject.objectives
            ],
            "limits": [str(r) for r in self.subject.limits],
            "trials": [{**_public(t), "keeps_limits": self._may_keep(t)} for t in self.trials],
            "counts": {s: sum(t.status == s for t in self.trials) for s in STATUSES},
            "cpu_seconds": sum(t.cpu_seconds for t in self.trials),
            "front": [t.number for t in self.front()],
            "winner": None if winner is None else winner.number,
            "surely_keeps_limits": None if winner is None else self.keeps(winner, surely=True),
            "surely_better_than_defaults": None if winner is None else self.sure(winner),
        }


STATUSES: Final = ("ok", "infeasible", "rejected", "failed", "running")


def _public(trial: Trial) -> dict[str, JSON]:
    return {
        "number": trial.number,
        "sample": dict(trial.sample),
        "status": trial.status,
        "reason": trial.reason,
        "values": {k: v.to_json() for k, v in trial.all_values.items()},
        "rungs": {k: v.to_json() for k, v in trial.rungs.items()},
        "notes": list[JSON](trial.notes),
        "seconds": trial.seconds,
        "cpu_seconds": trial.cpu_seconds,
        "workers": list[JSON](sorted({run.worker for run in trial.runs.values()})),
    }


def _key(job: Job) -> str:
    """Of a job within its trial: without its number, so that a key says what was done."""
    return f'{{"trained":{str(job.trained).lower()},"share":{job.share},"fold":{job.fold},"seed":{job.seed}}}'


def described(sample: Sample) -> str:
    """A sample in a line, by the last part of each key."""
    return ", ".join(
        f"{name if name == CANDIDATE else name.rpartition('.')[2]} {value}" for name, value in sample.items()
    )


def _said(value: Value | None) -> str:
    if value is None:
        return "not known"
    if value.low == value.high:
        return f"{value.estimate:.4g} ({value.tier})"
    return f"{value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}] ({value.tier})"
