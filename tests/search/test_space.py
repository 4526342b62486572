"""What a profile may say about searching, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwopt.config.profile import load, look, parts_of, put
from hwopt.config.yaml_text import parse
from hwopt.core.canonical import canonical_json
from hwopt.core.search import Holdout, SearchSettings
from hwopt.data.digits import SOURCE
from hwopt.data.holdout import fold_of, held_out
from hwopt.engine.prepare import prepare
from hwopt.errors import ConfigError
from hwopt.plugins import load_reference
from hwopt.search.job import Job
from hwopt.search.subject import Subject, written
from hwopt.search.versions import restarted, shortened, untrained
from tests.search.subjects import HEAD, LR, subject

LIMIT = {"metric": "accuracy_drop", "max": 0.01}


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"space": {}}, "the space is empty"),
        ({"space": {"train.optimizer.lr": {"one_of": []}}}, "nothing to choose from"),
        ({"space": {"train.optimizer.lr": {"one_of": [0.1]}}}, "holds one version"),
        ({"space": {"train.optimizer.lr": {"range": [0.1, 0.01]}}}, "is empty"),
        ({"space": {"train.optimizer.lr": {"log": [0.0, 0.1]}}}, "has no logarithm"),
        ({"space": {"train.optimizer.lr": {"log": [1e-4, 0.1], "range": [0, 1]}}}, "exactly one of"),
        ({"space": {"train.optimizer.lr": {"log": [1e-4, 0.1], "step": 0.1}}}, "step does not serve log"),
        ({"space": {"train.epochs": {"integers": [1, 9], "step": 0.5}}}, "leaves the integers"),
        ({"space": {"train.epochs": {"one_of": [1, 1]}}}, "a value twice"),
        (
            {"space": {**LR, "train.epochs": {"integers": [1, 9], "when": {"model.hidden": 3}}}},
            "no axis of the space",
        ),
        (
            {"space": {**LR, "train.epochs": {"integers": [1, 9], "when": {"train.optimizer.lr": 3}}}},
            "never is",
        ),
        (
            {
                "space": {
                    "a": {"one_of": [1, 2], "when": {"b": 1}},
                    "b": {"one_of": [1, 2], "when": {"a": 1}},
                }
            },
            "wait for each other",
        ),
        ({"space": LR, "sampler": "grid"}, "a grid has no end"),
        ({"space": {**LR, "train.batch_size": {"one_of": [8, 9]}}, "sampler": "cma"}, "cma searches numbers"),
        ({"space": LR, "objectives": [{"metric": "macs"}, {"metric": "macs"}]}, "stands twice"),
        ({"space": LR, "validation": {"folds": 3, "used": 4}}, "cannot be used"),
        ({"space": {"train.optimizer.lrr": {"log": [1e-4, 0.1]}}}, "lrr"),
        ({"space": {"train.optimizer.name": {"one_of": ["adamm", "adamww"]}}}, "adamm"),
        ({"space": {"candidates.small.7.prune.ratio": {"range": [0.1, 0.9]}}}, "no place in a list of 2"),
        ({"space": {"targets.0": {"one_of": ["a", "b"]}}}, "is what the search is about"),
        ({"space": {"candidate": {"one_of": ["float", "smal"]}}}, "no candidate of the profile"),
        ({"space": {"candidate": {"integers": [0, 3]}}}, "chooses among names, and has none"),
        ({"space": LR, "target": "host"}, "'host', which the profile does not have"),
        ({"space": LR, "objectives": [{"metric": "acuracy"}]}, "acuracy"),
    ],
)
def test_a_space_that_cannot_be_searched(search: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + f"search: {canonical_json(search)}\n")
    with pytest.raises(ConfigError) as caught:
        Subject.of(load(path))
    assert says in str(caught.value)
    assert f"{path}:7" in str(caught.value)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ([{"metric": "macs", "max": 10}, {"metric": "macs", "min": 20}], "no version can be both"),
        ([{"metric": "accuracy", "min": 1.5}], "never above 1"),
        ([{"metric": "file_bytes", "max": 0}], "never below 1"),
        (
            [{"metric": "speedup", "min": 4}, {"metric": "relative_latency", "min": 0.5}],
            "speedup ≥ 4 is one of at most 0.25",
        ),
        ([{"metric": "integer_share", "min": 0.5}], "hwopt gate"),
    ],
)
def test_limits_that_nothing_can_keep(limits: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        subject(tmp_path, requirements=limits)


def test_a_profile_without_the_section(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(HEAD)
    with pytest.raises(ConfigError, match="no section search"):
        Subject.of(load(tmp_path / "p.yaml"))


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (
            "{name: cnn, width: 16, depth: 3}",
            {"model.width": [4, 8, 12, 16], "model.depth": [1, 2, 3], "model.kernel": [3, 5, 7]},
        ),
        (
            "{name: mlp, hidden: [32, 8]}",
            {"model.hidden": [[8], [16], [24], [32], [8, 2], [16, 4], [24, 6], [32, 8]]},
        ),
        ("{name: mobilenet_v2}", {"model.width": [0.25, 0.5, 0.75, 1.0]}),
        ("{name: resnet, width: 8}", {"model.width": [2, 4, 6, 8], "model.depth": [8, 14, 20]}),
        ("{name: mlp, hidden: [4]}", {"model.hidden": [[1], [2], [3], [4]]}),
        ("{name: resnet, depth: 14, width: 2}", {"model.width": [1, 2], "model.depth": [8, 14]}),
        ("{name: transformer, layers: 1}", {"model.width": [16, 24, 32, 48]}),
        (
            "{factory: 'mine:net', width: 8, layers: 2, wide: true}",
            {"model.width": [2, 4, 6, 8], "model.layers": [1, 2]},
        ),
        (
            "{factory: 'mine:net', layers: 3000000, hidden: [true, 3], depth: 2.5}",
            {"model.layers": [375000 * i for i in range(1, 9)]},
        ),
    ],
)
@pytest.mark.parametrize(
    "section", ["width_depth", "{space: width_depth, trials: 3}", "{space: {width_depth: true}}"]
)
def test_widths_and_depths_of_a_model(model: str, axes: dict[str, Any], section: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD.replace("{name: mlp, hidden: [32]}", model) + f"search: {section}\n")
    of = Subject.of(load(path))
    assert {n: list(a.one_of or ()) for n, a in of.settings.space.items()} == axes
    for name, axis in of.settings.space.items():
        for value in axis.one_of or ():
            of.changed({**of.defaults(), name: value})  # raises where a version has no profile
    defaults = of.defaults()
    if "factory" not in model:
        assert set(defaults) == set(axes), "the profile itself is a version of the space"
        assert of.changed(defaults).model == of.profile.model


def test_a_model_without_widths(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    model = "{name: efficientnet_lite0}"
    path.write_text(HEAD.replace("{name: mlp, hidden: [32]}", model) + "search: width_depth\n")
    with pytest.raises(ConfigError, match=r"width_depth finds nothing: this model") as caught:
        load(path)
    assert f"{path}:7" in str(caught.value)


def test_widths_beside_other_axes_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + "search: {space: {width_depth: true, train.optimizer.lr: {log: [1e-4, 1e-1]}}}\n")
    assert set(Subject.of(load(path)).settings.space) == {"model.hidden", "train.optimizer.lr"}
    path.write_text(HEAD + "search: width_depth\n")
    rate = "search.space.candidate={one_of: [float, small]}"
    of = Subject.of(load(path, ["search.trials=2", rate]))
    assert (of.settings.trials, set(of.settings.space)) == (2, {"model.hidden", "candidate"})
    for section in ("width_dept", "{space: width_dept}"):
        path.write_text(HEAD + f"search: {section}\n")
        with pytest.raises(ConfigError, match=r"'width_dept' is no space") as caught:
            load(path)
        assert "did you mean 'width_depth'?" in str(caught.value)
        assert f"{path}:7" in str(caught.value)


def test_an_axis_with_one_legal_value_is_searched(tmp_path: Path) -> None:
    of = subject(tmp_path, {"model.hidden": {"one_of": [[32], [0]]}, **LR})
    assert of.structure({"model.hidden": [32]}) is None  # nothing of it is asked for


def test_keys_lead_through_lists_and_names_with_dots() -> None:
    document = parse("a: {'b.c': [1, {d: 2}]}\n", Path("x"))
    assert parts_of('a."b.c".1.d') == ("a", "b.c", "1", "d")
    put(document, 'a."b.c".1.d', 5, "test")
    put(document, 'a."b.c".0', 7, "test")
    put(document, "e.f", 9, "test")
    assert document.value == {"a": {"b.c": [7, {"d": 5}]}, "e": {"f": 9}}
    assert look(document, 'a."b.c".1.d') == (True, 5)
    assert look(document, "a.nothing.more") == (False, None)
    with pytest.raises(ConfigError, match="below something"):
        put(document, "e.f.g", 1, "test")


def test_closed_axes_leave_the_profile(tmp_path: Path) -> None:
    space = {
        "train.optimizer.name": {"one_of": ["adamw", "nesterov"]},
        "train.optimizer.momentum": {"range": [0.5, 0.9], "when": {"train.optimizer.name": "nesterov"}},
    }
    one = subject(tmp_path, space)
    opened: Any = one.changed({"train.optimizer.name": "nesterov", "train.optimizer.momentum": 0.75})
    assert opened.source.config.optimizer.options == {"momentum": 0.75}
    closed: Any = one.changed({"train.optimizer.name": "adamw"})
    assert closed.source.config.optimizer.options == {}


def test_the_profile_itself_is_the_first_version(tmp_path: Path) -> None:
    space = {
        "train.batch_size": {"one_of": [32, 64, 128]},
        "candidates.small.0.prune.ratio": {"range": [0.1, 0.9]},
        "candidate": {"one_of": ["float", "small"]},
    }
    one = subject(tmp_path, space, candidate="small")
    assert one.defaults() == {
        "train.batch_size": 128,
        "candidates.small.0.prune.ratio": 0.5,
        "candidate": "small",
    }


def test_what_is_known_before_training_needs_none(tmp_path: Path) -> None:
    one = subject(tmp_path, candidate="small")
    bare = untrained(one.changed({}))
    assert bare.source.stage == "untrained"
    assert [link.stage for link in bare.candidates[0].chain] == ["prune", "quantize"]
    qat = one.profile.candidates[1].chain[1]
    config = type(qat.config).model_validate({"method": "qat", "epochs": 9, "weights": "int8"})
    chain = untrained(_with_chain(one, config)).candidates[0].chain
    assert (chain[0].config.method, chain[0].config.weights) == ("ptq", "int8")  # type: ignore[attr-defined]


def _with_chain(one: Subject, config: Any, stage: str = "quantize") -> Any:
    candidate = one.profile.candidates[1]
    link = replace(candidate.chain[1], stage=stage, config=config)
    return replace(one.profile, candidates=(replace(candidate, chain=(link,)),))


def test_a_share_of_the_training(tmp_path: Path) -> None:
    one = subject(tmp_path)
    config: Any = shortened(one.profile, 0.5, 1000).source.config
    # 900 samples are left after validation: 8 batches of 128 an epoch, two epochs.
    assert config.max_steps == 8
    profile, reference, name = one.of_job(
        Job(trial=0, sample={"train.optimizer.lr": 0.01}, trained=True), 1000
    )
    assert (profile.holdout, name) == (reference.holdout, "float")
    assert profile.holdout == Holdout(fold=0, folds=5, seed=0)


def test_folds_are_even_and_leave_the_test_split_out() -> None:
    data = load_reference(SOURCE.load)(SOURCE.settings())
    folds = fold_of(data.y_train, Holdout(fold=0, folds=5, seed=3))
    sizes = [(folds == f).sum() for f in range(5)]
    assert max(sizes) - min(sizes) <= 1
    for label in range(10):
        mine = [((folds == f) & (data.y_train == label)).sum() for f in range(5)]
        assert max(mine) - min(mine) <= 1
    seen = set()
    for fold in range(5):
        part = held_out(data, Holdout(fold=fold, folds=5, seed=3))
        assert len(part.x_train) + len(part.x_test) == len(data.x_train)
        seen |= {row.tobytes() for row in part.x_test}
    assert seen == {row.tobytes() for row in data.x_train}
    other = fold_of(data.y_train, Holdout(fold=0, folds=5, seed=4))
    assert (other != folds).any()


def test_equal_values_are_one_and_closed_keys_go(tmp_path: Path) -> None:
    one = subject(tmp_path, {"train.label_smoothing": {"one_of": [0, 0.1, "x"]}, **LR})
    found = one.defaults()["train.label_smoothing"]
    assert (found, type(found)) == (0, int)
    with pytest.raises(ConfigError, match="a value twice"):
        subject(tmp_path, {"train.epochs": {"one_of": [1, 1.0]}, **LR})
    space = {
        "candidate": {"one_of": ["float", "small"]},
        "train.optimizer.name": {"one_of": ["adamw", "nesterov"]},
        "candidates.small.0.prune.importance": {
            "one_of": ["l1", "taylor"],
            "when": {"candidate": "small", "train.optimizer.name": "nesterov"},
        },
    }
    both = subject(tmp_path, space, candidate="small")
    small: Any = (
        both.changed({"candidate": "small", "train.optimizer.name": "adamw"}).candidates[0].chain[0].config
    )
    assert "importance" not in small.model_fields_set
    assert both.changed({"candidate": "float", "train.optimizer.name": "adamw"}).candidates[0].name == "float"


def test_checking_changes_nothing(tmp_path: Path) -> None:
    space = {"train.optimizer": {"one_of": [{"name": "adamw", "lr": 0.1}, {"name": "sgd", "lr": 0.2}]}, **LR}
    one = subject(tmp_path, space)
    before = canonical_json(one.settings.to_json())
    one.check_axes()
    one.changed(
        {"train.optimizer": one.settings.space["train.optimizer"].one_of[0], "train.optimizer.lr": 0.01}
    )  # type: ignore[index]
    assert canonical_json(one.settings.to_json()) == before


def test_the_winners_profile_is_the_winner(tmp_path: Path) -> None:
    one = subject(tmp_path, {"candidate": {"one_of": ["float", "small"]}, **LR}, restarts=3)
    found = one.written({"candidate": "small", "train.optimizer.lr": 0.02})
    assert list(found["candidates"]) == ["small"]
    assert found["candidates"]["small"][0] == {"ensemble": {"members": 3, "validation_share": 0.1}}
    assert found["train"]["optimizer"]["lr"] == 0.02
    assert "search" not in found


def test_sizes() -> None:
    def size(**axis: Any) -> float:
        settings = SearchSettings.model_validate_json(canonical_json({"space": {"a": axis, **LR}}))
        return settings.space["a"].size

    assert size(integers=[2, 9], step=3) == 3
    assert size(range=[0.0, 1.0], step=0.25) == 5
    assert size(log=[0.1, 1.0]) == float("inf")
    assert size(one_of=["a", "b"]) == 2


def _of(folder: Path, head: str, search: dict[str, Any], requirements: list[dict[str, Any]]) -> Subject:
    path = folder / "p.yaml"
    search = {"space": LR, **search}
    path.write_text(f"{head}requirements: {canonical_json(requirements)}\nsearch: {canonical_json(search)}\n")
    return Subject.of(load(path))


@pytest.mark.parametrize(
    ("swap", "search", "requirements", "says"),
    [
        (("", ""), {"objectives": [{"metric": "validation_accuracy"}]}, [], "small ends with quantize"),
        (
            ("", ""),
            {"halving": {"on": "validation_accuracy"}, "objectives": [{"metric": "accuracy"}]},
            [],
            "small ends with quantize",
        ),
        (
            ("epochs: 2", "epochs: 2, validation_share: 0.0"),
            {"objectives": [{"metric": "validation_accuracy"}], "candidate": "float"},
            [],
            "train holds back none",
        ),
        (("host-cpu", "pynq-z2"), {}, [LIMIT, {"metric": "speedup", "min": 2}], "has no design on pynq-z2"),
        (
            ("host-cpu", "pynq-z2"),
            {"objectives": [{"metric": "relative_latency"}]},
            [],
            "has no design on pynq-z2",
        ),
        (("", ""), {}, [{"metric": "fits"}], "fits is of FPGA designs"),
        (
            ("epochs: 2", "epochs: 2, validation_share: 0.0"),
            {"restarts": 2},
            [],
            "train may hold back none",
        ),
        (
            ("", ""),
            {"restarts": 2, "space": {"train.validation_share": {"range": [0.0, 0.3]}}},
            [],
            "train may hold back none",
        ),
        (
            ("{prune: {ratio: 0.5}}, {quantize: {method: ptq}}", "{elastic: {macs: 0.5}}"),
            {"halving": {}, "objectives": [{"metric": "accuracy"}]},
            [],
            "does not show how good small's elastic will be",
        ),
    ],
)
def test_what_a_device_or_a_chain_cannot_tell_is_said_before_anything_runs(
    swap: tuple[str, str],
    search: dict[str, Any],
    requirements: list[dict[str, Any]],
    says: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=says):
        _of(tmp_path, HEAD.replace(*swap), search, requirements)


def test_an_fpga_is_searched_for_its_latency(tmp_path: Path) -> None:
    one = _of(tmp_path, HEAD.replace("host-cpu", "pynq-z2"), {}, [LIMIT, {"metric": "fits"}])
    assert [o.metric for o in one.objectives] == ["latency_ms"]
    assert [o.metric for o in _of(tmp_path, HEAD, {}, [LIMIT]).objectives] == ["relative_latency"]


def test_the_profile_itself_is_tried_where_its_defaults_are_not_written_out(tmp_path: Path) -> None:
    space = {"candidates.small.0.prune.importance": {"one_of": ["l1", "l2"]}, "seed": {"one_of": [0, 1]}}
    assert subject(tmp_path, space, candidate="small").defaults() == {
        "candidates.small.0.prune.importance": "l2",
        "seed": 0,
    }
    other = {"candidates.small.1.quantize.method": {"one_of": ["ptq", "dynamic"]}}
    assert subject(tmp_path, other, candidate="small").defaults() == dict.fromkeys(other, "ptq")


def test_another_device_file_is_another_question(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "hardware_profiles" / "pynq-z2.yaml").read_text()
    head = HEAD.replace("host-cpu", "pynq-z2.yaml")

    def digest(text: str) -> str:
        (tmp_path / "pynq-z2.yaml").write_text(text)
        return _of(tmp_path, head, {}, []).digest

    assert "lut: 53200" in shipped
    assert digest(shipped) != digest(shipped.replace("lut: 53200", "lut: 53100"))
    assert digest(shipped) == digest(shipped)


def test_less_training_within_a_step_too(tmp_path: Path) -> None:
    one = subject(tmp_path)

    def short(stage: str, **options: Any) -> Any:
        config = load_reference(f"hwopt.stages.{stage}.spec:SPEC").config.model_validate(options)
        return shortened(_with_chain(one, config), 0.25, 1000).candidates[0].chain[0].config

    steps = 8  # 900 of 1000 samples, in batches of 128
    assert short("elastic", macs=0.5).train.max_steps == round(steps * 5 * 0.25)
    assert short("prune", ratio=0.5, schedule="iterative").tune.max_steps == round(steps * 0.25)
    assert short("prune", ratio=0.5) == load_reference("hwopt.stages.prune.spec:PruneConfig")(ratio=0.5)
    warm = short("finetune", epochs=2, schedule={"name": "cosine", "warmup": 10})
    assert (warm.max_steps, warm.schedule.warmup) == (4, 2)


@pytest.mark.parametrize("take", ["best", "average"])
def test_an_ensemble_is_known_before_it_is_trained(take: str, tmp_path: Path) -> None:
    one = subject(tmp_path)
    config = load_reference("hwopt.stages.ensemble.spec:SPEC").config(members=3, take=take)
    bare = untrained(_with_chain(one, config, "ensemble"))
    rows = prepare(bare).plan.rows  # a plan that can be made
    assert rows[0].unavailable is None
    assert len(bare.candidates[0].chain) == (1 if take == "average" else 0)


@pytest.mark.parametrize("share", [0.1, 0.2])
@pytest.mark.parametrize("name", ["fp32", "small"])
def test_a_winner_that_is_trained_several_times_can_be_run(name: str, share: float, tmp_path: Path) -> None:
    head = HEAD.replace("float: []", "fp32: []").replace("epochs: 2", f"epochs: 2, validation_share: {share}")
    one = _of(tmp_path, head, {"restarts": 3, "space": {"candidate": {"one_of": ["fp32", "small"]}}}, [])
    sample = {"candidate": name}
    again = restarted(one.changed(sample), name, 3)
    prepare(again, one.profile)
    path = tmp_path / "winner.yaml"
    path.write_text(written(one, sample, Path("p.yaml")))
    assert [c.name for c in load(path).candidates] == [c.name for c in again.candidates]
    assert load(path).candidates[0].chain[0].config == again.candidates[0].chain[0].config
    assert load(path).ship == again.candidates[0].name
    prepare(load(path))


def test_a_winners_profile_keeps_its_targets_requirements_and_its_recipe(tmp_path: Path) -> None:
    head = HEAD.replace("host-cpu", "host-cpu, x86-avx2").replace(
        "[{prune: {ratio: 0.5}}, {quantize: {method: ptq}}]", "{recipe: auto, latency: 0.5}"
    )
    requirements = [LIMIT, {"metric": "latency_ms", "max": 9, "target": "x86-avx2"}]
    one = _of(tmp_path, head, {"restarts": 2, "candidate": "small"}, requirements)
    path = tmp_path / "winner.yaml"
    path.write_text(written(one, {"train.optimizer.lr": 0.01}, Path("p.yaml")))
    profile = load(path)
    assert [r.metric for r in profile.requirements] == ["accuracy_drop"]
    assert [link.stage for link in profile.candidates[0].chain] == ["ensemble", "auto"]


def test_a_teacher_that_cannot_be_halved(tmp_path: Path) -> None:
    chain = "[{prune: {ratio: 0.5}}, {finetune: {epochs: 1, distill: {teacher: big}}}], big: [{elastic: {macs: 0.5}}]"
    head = HEAD.replace("[{prune: {ratio: 0.5}}, {quantize: {method: ptq}}]", chain)
    search = {"halving": {}, "objectives": [{"metric": "accuracy"}], "candidate": "small"}
    with pytest.raises(ConfigError, match="how good big's elastic will be"):
        _of(tmp_path, head, search, [])
    _of(tmp_path, head, {**search, "candidate": "float"}, [])


def test_a_fine_tuning_without_validation_samples_tells_no_accuracy(tmp_path: Path) -> None:
    chain = "[{prune: {ratio: 0.5}}, {finetune: {epochs: 1, validation_share: 0.0}}]"
    head = HEAD.replace("[{prune: {ratio: 0.5}}, {quantize: {method: ptq}}]", chain)
    search = {"objectives": [{"metric": "validation_accuracy"}], "candidate": "small"}
    with pytest.raises(ConfigError, match="finetune holds back none"):
        _of(tmp_path, head, search, [])
    _of(tmp_path, head.replace("validation_share: 0.0", "validation_share: 0.2"), search, [])


def test_the_accuracy_is_that_of_the_weights_that_are_kept() -> None:
    from hwopt.search.perform import validation_accuracy

    epochs = [
        {"validation_accuracy": a, "validation_loss": loss}
        for a, loss in ((0.5, 1.0), (0.8, 0.2), (0.75, 0.3))
    ]
    options = {"epochs": 3, "validation_share": 0.2, "optimizer": {"lr": 0.1}}
    make = load_reference("hwopt.stages.train.spec:SPEC").config.model_validate
    facts = {"history": epochs}
    last = validation_accuracy(facts, make(options), 1000)
    best = validation_accuracy(facts, make({**options, "early_stopping": {"patience": 1}}), 1000)
    assert last is not None
    assert best is not None
    assert (last.estimate, best.estimate) == (0.75, 0.8)
    few = validation_accuracy(facts, make(options), 100)
    assert few is not None
    assert few.high - few.low > last.high - last.low
    assert validation_accuracy({}, make(options), 1000) is None


def test_the_same_question_in_another_folder(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [value], [out])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    head = HEAD.replace("{name: mlp, hidden: [32]}", "{onnx: m.onnx}").replace("train: {epochs: 2}\n", "")
    head = head.replace("{prune: {ratio: 0.5}}, ", "")
    space = {"space": {"candidate": {"one_of": ["float", "small"]}}}

    def digest(name: str, doc: str = "") -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made.doc_string = doc
        onnx.save(made, folder / "m.onnx")
        return _of(folder, head, space, []).digest

    assert digest("a") == digest("b")
    assert digest("a") != digest("b", "another")


def test_other_targets_do_not_matter(tmp_path: Path) -> None:
    from hwopt.search.perform import Here
    from hwopt.store.store import Store

    head = HEAD.replace("host-cpu", "host-cpu, pynq-z2").replace(
        "{prune: {ratio: 0.5}}, {quantize: {method: ptq}}", "{elastic: {latency: 0.5}}"
    )
    one = _of(tmp_path, head, {"candidate": "small", "target": "host-cpu"}, [])
    Here(subject=one, store=Store(tmp_path / "store"), progress=lambda text: None).check(refit=True)
    arm = _of(tmp_path, HEAD.replace("host-cpu", "arm64-dotprod"), {}, [])
    with pytest.raises(ConfigError, match="this machine is not a arm64-dotprod"):
        Here(subject=arm, store=Store(tmp_path / "store"), progress=lambda text: None).check(refit=True)


def test_defaults_of_an_optimizer_within_a_chain(tmp_path: Path) -> None:
    chain = "[{prune: {ratio: 0.5}}, {finetune: {epochs: 1, optimizer: {name: momentum}}}]"
    head = HEAD.replace("[{prune: {ratio: 0.5}}, {quantize: {method: ptq}}]", chain)
    axis = "candidates.small.1.finetune.optimizer.lr"
    one = _of(tmp_path, head, {"space": {axis: {"log": [1e-4, 1.0]}}, "candidate": "small"}, [])
    assert set(one.defaults()) == {axis}


@pytest.mark.parametrize(
    ("limits", "clash"),
    [
        ([("relative_latency", "max", 0.5), ("speedup", "max", 1.5)], True),
        ([("relative_latency", "min", 0.5), ("relative_latency", "min", 0.8), ("speedup", "min", 1.5)], True),
        ([("relative_latency", "max", 0.5), ("speedup", "min", 1.5)], False),
        ([("relative_latency", "min", 0.5), ("speedup", "min", 1.5)], False),
    ],
)
def test_a_speed_up_is_the_inverse_of_a_share(
    limits: list[tuple[str, str, float]], clash: bool, tmp_path: Path
) -> None:
    made = [{"metric": metric, end: value} for metric, end, value in limits]
    if not clash:
        _of(tmp_path, HEAD, {}, made)
        return
    with pytest.raises(ConfigError, match="is a relative latency of at least"):
        _of(tmp_path, HEAD, {}, made)


def test_a_lesser_machine_is_predicted_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwopt.search.perform import Here
    from hwopt.store.store import Store

    def here(*requirements: dict[str, Any], **search: Any) -> Here:
        head = HEAD.replace("host-cpu", "x86-avx2")
        of = _of(tmp_path, head, {"candidate": "float", **search}, [dict(r) for r in requirements])
        return Here(subject=of, store=Store(tmp_path / "store"), progress=lambda text: None)

    planned = prepare

    def elsewhere(profile: Any) -> Any:
        """As on a machine that has more than the target: nothing is timed."""
        found = planned(profile)
        timed = {step.key for step in found.plan.steps if step.stage == "benchmark"}
        rows = [
            replace(r, steps=tuple(k for k in r.steps if k not in timed), unavailable=None)
            for r in found.plan.rows
        ]
        return replace(found, plan=replace(found.plan, rows=tuple(rows)))

    monkeypatch.setattr("hwopt.search.perform.prepare", elsewhere)
    with pytest.raises(ConfigError, match="are predicted, and no relative_latency"):
        here(objectives=[{"metric": "relative_latency"}]).check(refit=False)
    limit = {"metric": "latency_ms", "max": 5.0}
    here(limit, objectives=[{"metric": "accuracy"}]).check(refit=False)
    with pytest.raises(ConfigError, match="could not judge it"):
        here(limit, objectives=[{"metric": "accuracy"}]).check(refit=True)
    here(objectives=[{"metric": "latency_ms"}]).check(refit=True)
    assert here(LIMIT, objectives=[{"metric": "speedup"}]).unjudgeable() is None
    assert here(limit, objectives=[{"metric": "accuracy"}]).unjudgeable() is not None
