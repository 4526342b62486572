"""Plans for machines that are not this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hwopt.config import hardware
from hwopt.config.profile import load
from hwopt.core.backend import Availability
from hwopt.core.hardware import DeviceKind
from hwopt.core.host import Host, describe
from hwopt.core.plan import Plan
from hwopt.engine.results import assemble
from hwopt.errors import ConfigError
from hwopt.planning.availability import World
from hwopt.planning.planner import plan

PROFILE = """\
name: p
data: {name: digits}
model: {name: cnn}
candidates:
  float: []
  ptq: [{quantize: {method: ptq}}]
  slim: [{prune: {ratio: 0.5}}]
targets: [TARGETS]
"""

AVX2 = Host(arch="x86_64", isa=frozenset({"avx2", "fma"}), cpu="old", cores=2, system="Linux")
VNNI = Host(
    arch="x86_64",
    isa=frozenset({"avx2", "fma", "avx512f", "avx512_vnni"}),
    cpu="new",
    cores=2,
    system="Linux",
)
ARM = Host(arch="aarch64", isa=frozenset({"neon", "dotprod"}), cpu="pi", cores=4, system="Linux")
RISCV = Host(arch="riscv64", isa=frozenset(), cpu="?", cores=1, system="Linux")


def world(host: Host, *, gpu: bool = False, data: str = "d") -> World:
    profiles = [hardware.shipped(name) for name in hardware.names()]
    return World(
        host=host,
        host_profile=describe(host, [p for p in profiles if p.kind is DeviceKind.CPU]),
        probe=lambda name: Availability(
            available=name == "onnxruntime" or gpu, reason="absent", fix="get it"
        ),
        data_fingerprint=data,
        model_code="",
    )


def planned(tmp_path: Path, targets: str, where: World, *overrides: str, text: str = PROFILE) -> Plan:
    path = tmp_path / "p.yaml"
    path.write_text(text.replace("TARGETS", targets))
    return plan(load(path, overrides), where)


@pytest.mark.parametrize(
    ("host", "name"),
    [(AVX2, "x86-avx2"), (VNNI, "x86-avx512-vnni"), (ARM, "arm64-dotprod"), (RISCV, "generic-cpu")],
)
def test_host_is_described_by_its_features(host: Host, name: str) -> None:
    found = world(host).host_profile
    assert found is not None
    assert found.name == name


def test_avx2_host_gets_seven_bit_weights_and_the_record_says_why(tmp_path: Path) -> None:
    result = planned(tmp_path, "host-cpu", world(AVX2))
    step = next(step for step in result.steps if step.stage == "quantize")
    assert step.hardware is not None
    assert step.hardware.quantization.weights.codes == (-64, 63)
    row = next(row for row in result.rows if row.candidate == "ptq")
    scheme: Any = assemble(row, [], None, step.hardware)["details"]["scheme"]  # type: ignore[index,call-overload]
    assert "[-64, 63]" in scheme["weights"]
    assert "saturates without VNNI" in scheme["why"]


def test_equal_steps_merge(tmp_path: Path) -> None:
    # Two devices with one scheme share the quantized model; the host is one of them.
    result = planned(tmp_path, "host-cpu, x86-avx512-vnni", world(VNNI))
    stages = [step.stage for step in result.steps]
    assert stages.count("train") == 1
    assert stages.count("quantize") == 1
    assert stages.count("evaluate") == 3
    two = planned(tmp_path, "host-cpu, zcu104", world(VNNI))
    assert [step.stage for step in two.steps].count("quantize") == 2


def test_steps_stand_after_what_they_need(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in planned(tmp_path, "host-cpu, zcu104", world(VNNI)).steps:
        assert all(source.step in seen for source in step.inputs.values())
        seen.add(step.key)


def test_absent_devices_cost_no_step_and_say_why(tmp_path: Path) -> None:
    result = planned(tmp_path, "nvidia-l4, arm64-dotprod, x86-amx", world(VNNI))
    assert result.steps == ()
    reasons = {row.target: row.unavailable for row in result.rows}
    assert "tensorrt: absent" in str(reasons["nvidia-l4"])
    assert "x86_64" in str(reasons["arm64-dotprod"])
    assert "amx_int8" in str(reasons["x86-amx"])
    assert all(row.fix for row in result.rows)


def test_better_silicon_runs_the_model_but_its_latency_is_not_the_devices(tmp_path: Path) -> None:
    result = planned(tmp_path, "x86-avx2", world(VNNI))
    assert not any(step.stage == "benchmark" for step in result.steps)
    assert any(step.stage == "evaluate" for step in result.steps)
    assert "not that of x86-avx2" in result.rows[0].notes["latency_ms"]


def test_float_has_no_fpga_design(tmp_path: Path) -> None:
    rows = {row.candidate: row for row in planned(tmp_path, "zcu104", world(VNNI)).rows}
    assert not rows["float"].applicable
    assert not rows["slim"].applicable
    assert rows["ptq"].unavailable is None


def keys(result: Plan) -> dict[str, str]:
    return {step.label: step.key for step in result.steps}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", {"train the float model", "export ptq", "benchmark ptq on host-cpu"}),
        ("train.epochs=3", {"train the float model", "prune for slim"}),
        ("benchmark.batch=4", {"benchmark ptq on host-cpu"}),
        ("model.width=16", {"train the float model"}),
        ("name=other", set()),
        ("requirements=[]", set()),
    ],
)
def test_keys_change_with_what_the_step_depends_on(tmp_path: Path, override: str, changed: set[str]) -> None:
    before = keys(planned(tmp_path, "host-cpu", world(VNNI)))
    after = keys(planned(tmp_path, "host-cpu", world(VNNI), override))
    different = {label for label in before if before[label] != after[label]}
    assert changed <= different
    if not changed:
        assert different == set()
    if override.startswith("benchmark"):
        assert "train the float model" not in different


def test_data_and_machine_enter_the_keys(tmp_path: Path) -> None:
    base = keys(planned(tmp_path, "host-cpu", world(VNNI)))
    other_data = keys(planned(tmp_path, "host-cpu", world(VNNI, data="e")))
    assert base["train the float model"] != other_data["train the float model"]
    other = Host(arch=VNNI.arch, isa=VNNI.isa, cpu="another", cores=2, system="Linux")
    moved = keys(planned(tmp_path, "host-cpu", world(other)))
    assert base["train the float model"] == moved["train the float model"]
    assert base["benchmark ptq on host-cpu"] != moved["benchmark ptq on host-cpu"]


def test_float_baseline_is_added_where_none_is_named(tmp_path: Path) -> None:
    text = PROFILE.replace("  float: []\n", "")
    result = planned(tmp_path, "host-cpu", world(VNNI), text=text)
    assert [row.candidate for row in result.rows if row.is_float] == ["fp32"]


def test_int4_is_refused_by_name_and_line(tmp_path: Path) -> None:
    text = PROFILE.replace("method: ptq", "weights: int4")
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, "host-cpu, nvidia-l4, zcu104", world(VNNI), text=text)
    problems = caught.value.problems
    assert [p.problem for p in problems] == [
        "weights are int4, but x86-avx512-vnni runs int8",
        "weights are int4, but nvidia-l4 runs int8",
    ]
    assert all(str(p.where).endswith("p.yaml:6") for p in problems)
    planned(tmp_path, "zcu104", world(VNNI), text=text)  # the FPGA takes it


def test_a_runtime_serves_only_its_kind_of_device(tmp_path: Path) -> None:
    text = (hardware.folder() / "nvidia-l4.yaml").read_text().replace("nvidia-l4", "mine")
    (tmp_path / "mine.yaml").write_text(text.replace("[tensorrt]", "[onnxruntime]"))
    result = planned(tmp_path, "mine.yaml", world(VNNI))
    assert "onnxruntime: it does not run on a gpu" in str(result.rows[0].unavailable)


def test_another_gpu_is_not_available_as_the_target(tmp_path: Path) -> None:
    here = Availability(available=True, device="NVIDIA H200, driver 1", isa="cc9.0")
    base = world(VNNI)
    where = World(
        host=base.host,
        host_profile=base.host_profile,
        probe=lambda name: here,
        data_fingerprint="d",
        model_code="",
    )
    result = planned(tmp_path, "nvidia-l4, nvidia-h200", where)
    rows = {row.target: row for row in result.rows}
    assert "NVIDIA H200" in str(rows["nvidia-l4"].unavailable)
    assert rows["nvidia-h200"].unavailable is None
    assert {step.hardware.name for step in result.steps if step.hardware} == {"nvidia-h200"}


COMPRESSED = """\
name: p
data: {name: digits}
model: {name: cnn}
benchmark: {batch: 8, threads: 2}
candidates:
  float: []
  half: [{prune: {latency: 0.5}}, {finetune: {epochs: 1}}]
  counted: [{prune: {macs: 0.5}}]
  student: [{prune: {ratio: 0.5}}, {finetune: {distill: {teacher: half}}}]
  auto: {recipe: auto, accuracy_drop: 0.01}
targets: [TARGETS]
"""


def steps_of(result: Plan, candidate: str) -> list[Any]:
    row = next(row for row in result.rows if row.candidate == candidate)
    return [step for step in result.steps if step.key in row.steps]


def test_a_recipe_is_a_chain_of_its_stage_and_is_timed_as_the_benchmark(tmp_path: Path) -> None:
    result = planned(tmp_path, "host-cpu", world(VNNI), text=COMPRESSED)
    auto = steps_of(result, "auto")[0]
    assert auto.stage == "auto"
    timing: Any = auto.config.timing
    assert (timing.runtime, timing.batch, timing.threads) == ("onnxruntime", 8, 2)
    train = next(step for step in result.steps if step.stage == "train")
    assert auto.inputs["source"].step == train.key


def test_only_steps_that_time_models_belong_to_the_machine(tmp_path: Path) -> None:
    other = Host(arch="x86_64", isa=VNNI.isa, cpu="another", cores=2, system="Linux")
    mine, theirs = (planned(tmp_path, "host-cpu", world(h), text=COMPRESSED) for h in (VNNI, other))
    for candidate, stage, same in (
        ("half", "prune", False),
        ("counted", "prune", True),
        ("auto", "auto", False),
    ):
        keys = [next(s for s in steps_of(p, candidate) if s.stage == stage).key for p in (mine, theirs)]
        assert (keys[0] == keys[1]) is same


def test_latency_goals_are_not_measured_on_another_device(tmp_path: Path) -> None:
    rows = {row.candidate: row for row in planned(tmp_path, "x86-avx2", world(VNNI), text=COMPRESSED).rows}
    assert "prune times models, and not measured" in str(rows["half"].unavailable)
    assert "goal in macs" in str(rows["half"].fix)
    assert rows["counted"].unavailable is None
    assert rows["student"].unavailable is not None  # its teacher would have to be timed


def test_a_teacher_is_another_candidate(tmp_path: Path) -> None:
    result = planned(tmp_path, "host-cpu", world(VNNI), text=COMPRESSED)
    tuned = steps_of(result, "half")[1]
    student = next(s for s in steps_of(result, "student") if s.stage == "finetune")
    assert student.inputs["teacher"].step == tuned.key


@pytest.mark.parametrize(
    ("teacher", "said"),
    [("nobody", "the teacher 'nobody' is no candidate"), ("student", "wait for each other")],
)
def test_teachers_that_cannot_teach(tmp_path: Path, teacher: str, said: str) -> None:
    text = COMPRESSED.replace("{teacher: half}", f"{{teacher: {teacher}}}")
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, "host-cpu", world(VNNI), text=text)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("{recipe: atuo, accuracy_drop: 0.1}", "unknown step 'atuo'"),
        ("{recipe: auto}", "auto needs a goal"),
        ("{recipe: auto, accuracy_drop: 0.1, widths: [0.2, 0.5]}", "from wide to narrow"),
        ("{recipe: auto, accuracy_drop: 0.1, polish: {validation_share: 0.2}}", "would be ignored"),
        ("[{prune: {ratio: 1.5}}]", "ratio"),
        ("[{prune: {latency: 0.5, timing: {runtime: onxruntime}}}]", "unknown runtime 'onxruntime'"),
        ("[{quantize: {method: dynamic, where_faster: true}}]", "where_faster times static versions"),
        ("[{quantize: {method: qat, distill: {features: 1.0}}}]", "features are matched between layers"),
    ],
)
def test_bad_recipes_are_refused_with_their_place(tmp_path: Path, candidate: str, said: str) -> None:
    text = COMPRESSED.replace("{recipe: auto, accuracy_drop: 0.01}", candidate)
    with pytest.raises(ConfigError, match=said) as caught:
        planned(tmp_path, "host-cpu", world(VNNI), text=text)
    problem = caught.value.problems[0]
    assert "p.yaml:10" in str(problem.where)
    assert problem.fix


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("{recipe: auto, accuracy_drop: 0.1}", "works on CPUs so far, and zcu104 is none"),
        ("[{prune: {latency: 0.5}}]", "zcu104 is a design: its latency is estimated"),
        ("[{quantize: {where_faster: true}}]", "where_faster times CPUs, and zcu104 is none"),
    ],
)
def test_devices_that_cannot_be_timed(tmp_path: Path, candidate: str, said: str) -> None:
    head, _, tail = COMPRESSED.partition("  half:")
    text = head + f"  one: {candidate}\n" + tail[tail.index("targets:") :]
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, "zcu104", world(VNNI), text=text)


def test_auto_evaluates_in_every_runtime_and_times_them_together(tmp_path: Path) -> None:
    both = world(VNNI)
    both = World(
        host=both.host,
        host_profile=both.host_profile,
        probe=lambda name: Availability(available=name in {"onnxruntime", "openvino"}, reason="absent"),
        data_fingerprint="d",
        model_code="",
    )
    result = planned(tmp_path, "host-cpu", both, "benchmark.runtime=auto")
    row = result.rows[0]
    assert list(row.evaluations) == ["onnxruntime", "openvino"]
    (timed,) = {
        step.key: step for step in result.steps if step.stage == "benchmark" and step.key in row.steps
    }.values()
    assert timed.config.among == ("onnxruntime", "openvino")  # type: ignore[attr-defined]
    chosen = row.counted("openvino")
    assert row.evaluations["openvino"] in chosen
    assert row.evaluations["onnxruntime"] not in chosen
    only = planned(tmp_path, "host-cpu", world(VNNI), "benchmark.runtime=auto")
    (alone,) = {s.config.runtime for s in only.steps if s.stage == "benchmark"}  # type: ignore[attr-defined]
    assert alone == "onnxruntime"
    named = planned(tmp_path, "host-cpu", both, "benchmark.runtime=auto", "benchmark.among=[openvino]")
    assert list(named.rows[0].evaluations) == ["openvino"]
    with pytest.raises(ConfigError, match="does not say auto"):
        planned(tmp_path, "host-cpu", both, "benchmark.among=[openvino]")
    with pytest.raises(ConfigError, match=r"unknown runtime 'opnvino'"):
        planned(tmp_path, "host-cpu", both, "benchmark.runtime=auto", "benchmark.among=[opnvino]")
