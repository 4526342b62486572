"""The lead over made-up landscapes: limits first, halving, fronts, ends, resumes."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage

from hwopt.errors import ConfigError
from hwopt.report.search import search_page, summary
from hwopt.search.job import Job, Outcome
from hwopt.search.lead import Lead, described
from hwopt.search.ledger import open_storage
from tests.search.subjects import LR, MadeUp, exact, lead, samples, subject

WIDTH = {"model.hidden.0": {"integers": [8, 64]}}
MACS = {"metric": "macs", "max": 2000}


def quality(job: Job) -> float:
    lr = float(str(job.sample.get("train.optimizer.lr", 3e-3)))
    width = float(str(job.sample.get("model.hidden.0", 32)))
    return 0.99 - 0.05 * abs(math.log10(lr) + 2.5) - 0.3 / width


def landscape(job: Job) -> dict[str, float]:
    """Wider is better and dearer."""
    macs = 64.0 * float(str(job.sample.get("model.hidden.0", 32)))
    known = {"macs": macs, "file_bytes": 4 * macs}
    return {**known, "accuracy": quality(job) * (0.9 + 0.1 * job.share)} if job.trained else known


def test_what_cannot_fit_is_never_trained(tmp_path: Path) -> None:
    crew = MadeUp(landscape)
    one = lead(subject(tmp_path, {**WIDTH, **LR}, [MACS], trials=12), crew)
    assert one.run() == "12 trials are done"
    wide = [t for t in one.trials if float(str(t.sample["model.hidden.0"])) * 64 > 2000]
    assert wide
    assert all(t.status == "infeasible" and t.known["macs"].estimate > 2000 for t in wide)
    trained = {job.trial for job in crew.jobs if job.trained}
    assert trained.isdisjoint(t.number for t in wide)
    assert len(trained) == 12
    winner = one.winner()
    assert winner is not None
    assert winner.all_values["macs"].estimate <= 2000
    kept = [t for t in one.trials if t.status == "ok"]
    assert winner.all_values["accuracy"].estimate == max(t.all_values["accuracy"].estimate for t in kept)


def test_limits_that_no_version_keeps_are_told_before_training(tmp_path: Path) -> None:
    crew = MadeUp(landscape)
    one = lead(subject(tmp_path, WIDTH, [{"metric": "macs", "max": 100}], trials=5), crew)
    with pytest.raises(ConfigError, match=r"none of 25 versions can keep the limits.*nearest is 0 8 with"):
        one.run()
    assert not any(job.trained for job in crew.jobs)


def test_an_interval_across_the_limit_is_not_refused(tmp_path: Path) -> None:
    crew = MadeUp(landscape, spread=200.0)
    one = lead(subject(tmp_path, {"model.hidden.0": {"one_of": [16, 33, 60]}}, [MACS], trials=3), crew)
    one.run()
    assert {t.sample["model.hidden.0"]: t.status for t in one.trials} == {
        16: "ok",
        33: "ok",
        60: "infeasible",
    }
    assert [t.sample["model.hidden.0"] for t in one.eligible()] == [16]  # only it surely keeps the limit


def test_halving_gives_up_early_and_keeps_the_best(tmp_path: Path) -> None:
    crew = MadeUp(landscape)
    full = lead(subject(tmp_path, LR, trials=27, sampler="random"), MadeUp(landscape))
    full.run()
    one = lead(subject(tmp_path, LR, trials=27, sampler="random", halving={}), crew)
    one.run()
    assert samples(one) == samples(full)
    spent = sum(t.cpu_seconds for t in one.trials)
    assert spent <= 0.5 * 27, spent
    best = max(full.trials, key=lambda t: t.values["accuracy"].estimate)
    winner = one.winner()
    assert winner is not None
    assert winner.number == best.number
    rejected = [t for t in one.trials if t.status == "rejected"]
    assert rejected
    assert all("of the training" in str(t.reason) for t in rejected)
    assert "place" in str(rejected[0].reason)


def test_two_objectives_reject_what_is_dominated(tmp_path: Path) -> None:
    crew = MadeUp(landscape)
    both: list[dict[str, Any]] = [{"metric": "accuracy"}, {"metric": "macs"}]
    one = lead(subject(tmp_path, {**WIDTH, **LR}, trials=30, objectives=both, halving={}), crew)
    one.run()
    found = one.front()
    assert len(found) >= 2
    for a, b in itertools.permutations(found, 2):
        assert a.values["accuracy"].estimate > b.values["accuracy"].estimate or (
            a.known["macs"].estimate < b.known["macs"].estimate
        )
    reasons = [str(t.reason) for t in one.trials if t.status == "rejected"]
    assert any("dominated by trial" in reason for reason in reasons)


def test_noise_dominates_nothing_and_halving_still_ends_what_is_behind(tmp_path: Path) -> None:
    both: list[dict[str, Any]] = [{"metric": "accuracy"}, {"metric": "macs"}]
    space = {"model.hidden.0": {"one_of": [8, 16]}, **LR}
    crew = MadeUp(landscape, spread=1e4)  # every interval overlaps every other
    one = lead(subject(tmp_path, space, trials=30, objectives=both, halving={}), crew)
    one.run()
    rejected = [t for t in one.trials if t.status == "rejected"]
    assert 10 < len(rejected) < 30
    assert all("is ahead in everything" in str(t.reason) for t in rejected)
    best = max((t for t in one.trials), key=lambda t: next(iter(t.rungs.values())).estimate)
    assert best.status == "ok"


def test_folds_and_seeds(tmp_path: Path) -> None:
    crew = MadeUp(lambda job: {"accuracy": 0.9 + 0.01 * job.fold + 0.001 * job.seed})
    one = lead(subject(tmp_path, LR, trials=1, validation={"folds": 3, "used": 3, "seeds": 2}), crew)
    one.run()
    assert [(j.fold, j.seed) for j in crew.jobs] == [(f, s) for f in range(3) for s in range(2)]
    value = one.trials[0].values["accuracy"]
    assert value.estimate == pytest.approx(0.9105)
    assert value.low < value.estimate < value.high


def test_a_crashed_trial_is_a_result_with_a_reason(tmp_path: Path) -> None:
    def measure(job: Job) -> dict[str, float]:
        if float(str(job.sample["train.optimizer.lr"])) > 0.01:
            raise ValueError("the loss became NaN")
        return {"accuracy": quality(job)}

    one = lead(subject(tmp_path, LR, trials=10), MadeUp(measure))
    one.run()
    failed = [t for t in one.trials if t.status == "failed"]
    assert failed
    assert {t.reason for t in failed} == {"the loss became NaN"}
    assert one.winner() is not None
    counts = one.summary("over")["counts"]
    assert counts["failed"] + counts["ok"] == 10


def test_the_defaults_come_first_and_the_lead_says_whether_it_is_sure(tmp_path: Path) -> None:
    for spread, sure in ((0.0, True), (0.5, False)):
        one = lead(subject(tmp_path, LR, trials=8), MadeUp(lambda job: {"accuracy": quality(job)}, spread))
        one.run()
        assert one.trials[0].sample == {"train.optimizer.lr": 1e-3}
        winner = one.winner()
        assert winner is not None
        assert one.sure(winner) is sure


def test_patience(tmp_path: Path) -> None:
    crew = MadeUp(lambda job: {"accuracy": 0.9})
    one = lead(subject(tmp_path, LR, trials=100, stop={"patience": 4}), crew)
    assert one.run() == "the last 4 trials brought nothing better"
    assert len(one.trials) == 5
    steady = lead(
        subject(tmp_path, LR, trials=12, stop={"patience": 4}),
        MadeUp(lambda job: {"accuracy": 0.1 + job.trial / 100}),
    )
    assert steady.run() == "12 trials are done"


def test_an_exhausted_space_and_the_time(tmp_path: Path) -> None:
    small = {"train.batch_size": {"one_of": [16, 32, 64]}}
    one = lead(subject(tmp_path, small, trials=50, sampler="tpe"), MadeUp(lambda job: {"accuracy": 0.9}))
    assert one.run() == "every version of the space was tried"
    assert len(one.trials) == 3
    hurried = lead(subject(tmp_path, LR, seconds=1e-9), MadeUp(lambda job: {"accuracy": 0.9}))
    assert hurried.run() == "the time is over"
    assert not hurried.trials


class Killed(BaseException):
    """As a signal would."""


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_resumed_it_goes_on_as_if_nothing_had_been(sampler: str, tmp_path: Path) -> None:
    of = subject(tmp_path, {**WIDTH, **LR}, [MACS], trials=14, sampler=sampler, halving={})
    whole = lead(of, MadeUp(landscape))
    whole.run()
    storage = open_storage(None, tmp_path / "store")
    jobs: list[Job] = []
    for limit in (1, 2, 3, 5, 8, 13, 1000):

        def measure(job: Job, limit: int = limit, done: list[Job] = []) -> dict[str, float]:  # noqa: B006
            if len(done) >= limit:
                done.clear()
                raise Killed
            done.append(job)
            jobs.append(job)
            return landscape(job)

        one = lead(of, MadeUp(measure), storage)
        try:
            one.run()
        except Killed:
            continue
    assert [(t.sample, t.status, t.values) for t in one.trials] == [
        (t.sample, t.status, t.values) for t in whole.trials
    ]
    assert len({job.key for job in jobs}) == len(jobs), "a finished job was done again"
    assert one.winner() == whole.winner() or _number(one) == _number(whole)
    more = lead(
        subject(tmp_path, {**WIDTH, **LR}, [MACS], trials=16, sampler=sampler, halving={}),
        MadeUp(landscape),
        storage,
    )
    more.run()  # trials are counted in all
    assert sum(t.status != "infeasible" for t in more.trials) == 16


def _number(one: Lead) -> int | None:
    winner = one.winner()
    return None if winner is None else winner.number


def test_another_question_in_the_same_study_is_refused(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    lead(subject(tmp_path, LR), MadeUp(landscape), storage)
    with pytest.raises(ConfigError, match="was begun with another profile"):
        lead(subject(tmp_path, WIDTH), MadeUp(landscape), storage)
    lead(
        subject(tmp_path, LR, trials=7, seconds=5.0), MadeUp(landscape), storage
    )  # how long is no part of it


def test_optuna_sees_the_same(tmp_path: Path) -> None:
    one = lead(subject(tmp_path, {**WIDTH, **LR}, [MACS], trials=12), MadeUp(landscape))
    one.run()
    study = one.ledger.study
    winner = one.winner()
    assert winner is not None
    assert study.best_trial.number == winner.number
    assert study.best_value == winner.values["accuracy"].estimate
    assert study.metric_names == ["accuracy"]
    states = {t.number: t.state.name for t in study.trials}
    for trial in one.trials:
        assert states[trial.number] == {"ok": "COMPLETE", "infeasible": "PRUNED"}[trial.status]
    first = next(t for t in study.trials if t.number == winner.number)
    assert first.params["model.hidden.0"] == winner.sample["model.hidden.0"]
    assert first.constraints["macs ≤ 2000"] <= 0


def test_a_sample_in_a_line() -> None:
    assert described({"candidate": "small", "train.optimizer.lr": 0.1}) == "candidate small, lr 0.1"


def test_a_rung_is_decided_once(tmp_path: Path) -> None:
    """A version that went on is not thrown away because a later one overtakes it at a rung that it has passed."""
    both: list[Job] = []

    class Two(MadeUp):
        """Two at a time: the second one's rung comes in before the first one's whole training."""

        def room(self) -> int:
            return 2 - len(self.waiting)

        def wait(self, seconds: float) -> list[Any]:
            self.waiting.sort(key=lambda job: (job.share == 1, job.trial))
            both.append(self.waiting[0])
            job = self.waiting.pop(0)
            return [(job, Outcome(status="ok", values={"accuracy": exact(0.5 + 0.01 * job.trial)}))]

    one = lead(subject(tmp_path, LR, trials=2, sampler="random", halving={}), Two(landscape))
    one.run()
    assert [t.status for t in one.trials] == ["ok", "ok"]
    assert [job.trial for job in both] == [0, 1, 0, 1]


def test_what_training_does_not_give_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    one = lead(subject(tmp_path, LR, trials=2, halving={}), MadeUp(lambda job: {}))
    one.run()
    assert {t.reason for t in one.trials} == {"the training gave no accuracy"}
    assert one.winner() is None


def test_halving_needs_something_that_training_makes_better(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no objective is such"):
        subject(tmp_path, WIDTH, objectives=[{"metric": "macs"}], halving={})


def test_a_winner_that_only_seems_to_keep_the_limits_is_named_so(tmp_path: Path) -> None:
    limit = {"metric": "accuracy", "min": 0.9}
    one = lead(subject(tmp_path, LR, [limit], trials=2), MadeUp(lambda job: {"accuracy": 0.95}, spread=0.1))
    one.run()
    assert one.summary(None)["surely_keeps_limits"] is False
    assert "leave it open" in summary(one.summary("over"))


def test_a_version_that_no_profile_can_be_is_a_failed_trial(tmp_path: Path) -> None:
    def measure(job: Job) -> dict[str, float]:
        if job.sample["model.hidden"] == [4097]:
            raise ValueError("no such network")
        return {"accuracy": 0.9} if job.trained else {"macs": 5.0, "file_bytes": 5.0}

    space = {"model.hidden": {"one_of": [[32], [16], [8], [4097]]}, **LR}
    one = lead(subject(tmp_path, space, [MACS], trials=12, sampler="random"), MadeUp(measure))
    one.run()
    assert {t.status for t in one.trials if t.sample["model.hidden"] == [4097]} == {"failed"}
    assert {t.status for t in one.trials if t.sample["model.hidden"] != [4097]} == {"ok"}


def test_a_grid_leaves_out_what_was_refused(tmp_path: Path) -> None:
    space = {"model.hidden.0": {"one_of": [16, 64]}, "train.optimizer.lr": {"one_of": [0.1, 0.01, 0.001]}}
    one = lead(subject(tmp_path, space, [MACS], trials=6, sampler="grid"), MadeUp(landscape))
    assert one.run() == "every version that may keep the limits was tried"
    assert [t.status for t in one.trials].count("infeasible") == 1
    assert [t.status for t in one.trials].count("ok") == 3


def test_of_equal_structures_the_better_trained_one_wins(tmp_path: Path) -> None:
    def measure(job: Job) -> dict[str, float]:
        if not job.trained:
            return {"macs": 640.0, "file_bytes": 5.0}
        return {"accuracy": quality(job), "accuracy_drop": 1 - quality(job)}

    limit: list[dict[str, Any]] = [{"metric": "accuracy_drop", "max": 1.0}]
    for objectives in ([{"metric": "macs"}], [{"metric": "macs"}, {"metric": "accuracy"}]):
        of = subject(tmp_path, LR, limit, trials=6, objectives=objectives, sampler="random")
        one = lead(of, MadeUp(measure, spread=0.2))
        one.run()
        winner = one.winner()
        assert winner is not None
        accuracies = [t.all_values["accuracy_drop"].estimate for t in one.eligible()]
        assert len(set(accuracies)) > 1
        assert winner.all_values["accuracy_drop"].estimate == min(accuracies)


def test_patience_with_several_objectives(tmp_path: Path) -> None:
    both = [{"metric": "accuracy"}, {"metric": "f1"}]
    stop = {"patience": 4, "gain": 0.01}
    level = MadeUp(lambda job: {"accuracy": 0.9 + job.trial * 1e-4, "f1": 0.9})
    one = lead(subject(tmp_path, LR, trials=60, stop=stop, objectives=both), level)
    assert one.run() == "the last 4 trials brought nothing better"
    assert len(one.trials) == 5
    along = MadeUp(lambda job: {"accuracy": 0.5 + job.trial / 30, "f1": 0.9 - job.trial / 30})
    front = lead(subject(tmp_path, LR, trials=12, stop=stop, objectives=both), along)
    assert front.run() == "12 trials are done"


def test_a_limit_without_a_number_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    limit = {"metric": "agreement", "min": 0.9}
    one = lead(subject(tmp_path, LR, [limit], trials=2), MadeUp(lambda job: {"accuracy": 0.9}))
    one.run()
    assert {t.reason for t in one.trials} == {"the training gave no agreement"}


def test_who_had_no_time_does_not_say_that_nothing_fits(tmp_path: Path) -> None:
    of = subject(tmp_path, WIDTH, [{"metric": "macs", "max": 100}], trials=50)
    one = lead(of, MadeUp(landscape))
    one.stopping = lambda: "the time is over" if len(one.trials) >= 2 else None
    assert one.run() == "the time is over"
    assert {t.status for t in one.trials} == {"infeasible"}


def test_the_best_so_far_keeps_the_limits(tmp_path: Path) -> None:
    def measure(job: Job) -> dict[str, float]:
        return {"accuracy": 0.9 - job.trial / 100, "accuracy_drop": 0.5 if job.trial == 0 else 0.0}

    one = lead(subject(tmp_path, LR, [{"metric": "accuracy_drop", "max": 0.02}], trials=3), MadeUp(measure))
    one.run()
    found = one.summary("over")
    assert [t["keeps_limits"] for t in found["trials"]] == [False, True, True]
    (svg,) = re.findall(r"<figure>(.*?)</figure>", search_page(found), re.DOTALL)
    assert "0.89" in svg
    assert "0.9<" not in svg


def test_an_answer_that_was_lost_makes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that does what it is told, and then fails to say so, every third time."""
    monkeypatch.setattr("hwopt.search.ledger._PAUSE_SECONDS", 0.0)
    storage, calls = InMemoryStorage(), itertools.count()

    def forgetful(call: Any) -> Any:
        def again(*args: Any, **options: Any) -> Any:
            found = call(*args, **options)
            if next(calls) % 3 == 2:
                raise StorageInternalError("the connection was closed")
            return found

        return again

    one = lead(subject(tmp_path, LR, trials=6), MadeUp(landscape), storage)
    for name in ("create_new_trial", "set_trial_state_values", "set_trial_user_attr"):
        monkeypatch.setattr(storage, name, forgetful(getattr(storage, name)))
    assert one.run() == "6 trials are done"
    assert [t.number for t in one.trials] == [t.number for t in one.ledger.trials()] == list(range(6))
    assert {t.status for t in one.ledger.trials()} == {"ok"}
