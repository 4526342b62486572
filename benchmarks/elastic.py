"""64 networks from one training against 64 trainings.

    python -m benchmarks.elastic --data ../shared/data/mnist --steps 450 --out elastic.json

A CNN of three convolutions (32 channels each, widths of 8 to 32) on MNIST: trained whole, then as a super-net by the
sandwich rule; every one of its 64 networks is scored with batch norm estimated anew. Beside it each of the 64 is
trained alone by the whole one's recipe. CPU-seconds of one thread; accuracies on the 10,000 test images.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import time
from pathlib import Path
from statistics import fmean, median

import click
import torch
from torch import nn

from hwopt.core.backend import BackendSpec
from hwopt.core.hardware import Pruning
from hwopt.data.idx import IdxOptions, load
from hwopt.engine.prepare import host_profile
from hwopt.latency.bench import Bench
from hwopt.latency.costs import builder
from hwopt.plugins import resolve
from hwopt.pruning.cut import cut
from hwopt.slimming import Slimmer
from hwopt.stages.elastic.latency_table import LatencyTable, agreement
from hwopt.stages.elastic.supernet import Sandwich, Shape, SuperNet
from hwopt.training.batches import split
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.evaluation import evaluate
from hwopt.training.loop import fit
from hwopt.training.settings import FitSettings


def net() -> nn.Module:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(*block(1, 32), *block(32, 32), *block(32, 32), nn.Flatten(), nn.Linear(512, 10))


@click.command()
@click.option("--data", default="../shared/data/mnist")
@click.option("--steps", default=450)
@click.option("--super-steps", default=450)
@click.option("--twins", default=64)
@click.option("--out", default="elastic.json", type=click.Path(path_type=Path))
def main(data: str, steps: int, super_steps: int, twins: int, out: Path) -> None:
    torch.set_num_threads(1)
    dataset = load(IdxOptions(root=data))
    parts = split(dataset, 0.1, 0)
    x_test, y_test = torch.from_numpy(dataset.x_test), torch.from_numpy(dataset.y_test)
    recipe = FitSettings(
        epochs=1000, max_steps=steps, batch_size=128, optimizer=OptimizerSettings(lr=3e-3),
        schedule=ScheduleSettings(name="one_cycle"), watch=False, validation_share=0.1,
    )  # fmt: skip
    quiet = lambda text: None  # noqa: E731
    few = type(parts)(
        x=parts.x, y=parts.y, x_validation=parts.x_validation[:0], y_validation=parts.y_validation[:0]
    )

    def spent(call: object) -> float:
        mark = time.process_time()
        call()  # type: ignore[operator]
        return time.process_time() - mark

    torch.manual_seed(0)
    whole = net()
    cost = {"whole": spent(lambda: fit(whole, few, recipe, seed=0, progress=quiet, label="whole"))}
    print("whole", evaluate(whole, x_test, y_test)[1], cost)
    slimmer = Slimmer(
        module=whole,
        sample_shape=(1, 28, 28),
        rules=Pruning(channel_multiple=8, least_channels=8),
        samples=parts.x,
        labels=parts.y,
    )
    sup = SuperNet(whole, slimmer.structure, slimmer.scores("l1"), (1.0, 0.75, 0.5, 0.25), slimmer.rules)
    shapes = [Shape(w) for w in itertools.product(*(range(n) for n in sup.sizes))]
    assert len(shapes) == sup.count == 64, sup.choices
    fresh = copy.deepcopy(whole)
    hook = Sandwich(sup, 2, 0)
    long = recipe.model_copy(update={"max_steps": super_steps, "optimizer": OptimizerSettings(lr=2e-3)})
    cost["super"] = spent(lambda: fit(whole, few, long, seed=1, progress=quiet, label="super", hooks=(hook,)))
    hook.close()
    rows = []
    mark = time.process_time()
    for shape in shapes:
        module = sup.alone(shape, parts.x)
        rows.append({"widths": sup.units(shape), "shared": evaluate(module, x_test, y_test)[1]})
    cost["scoring"] = time.process_time() - mark
    print(
        {k: round(v, 1) for k, v in cost.items()},
        "shared",
        min(r["shared"] for r in rows),
        max(r["shared"] for r in rows),
    )
    # the latency table against whole networks
    device = host_profile()
    backend: BackendSpec = resolve("backend", "onnxruntime")
    if device is not None and backend:
        bench = Bench(runtime="onnxruntime", hardware=device, sample=dataset.x_train[:1])
        build = builder(fresh, slimmer.structure, (1, 28, 28))
        first, *others = (build(sup.keep(s)) for s in shapes)
        order = random.Random(0).sample(range(len(others)), len(others))  # noqa: S311 - an order
        measured: list[float] = [0.0] * len(others)
        for start in range(0, len(order), 12):
            some = order[start : start + 12]
            looks = [bench.ratios(first, [others[i] for i in some]) for _ in range(5)]
            for i, several in zip(some, zip(*looks, strict=True), strict=True):
                measured[i] = median(several)
        fitted, judged = order[:24], order[24:]
        table = LatencyTable(bench)
        plain = agreement(
            table.price([first, *(others[i] for i in judged)]), [1.0, *(measured[i] for i in judged)]
        )
        print(f"latency table uncorrected: tau {plain[0]:.2f}, error {plain[1]:.1%}")
        table.correct([first, *(others[i] for i in fitted)], [1.0, *(measured[i] for i in fitted)])
        models = [others[i] for i in judged]
        tau, error = agreement(table.price([first, *models]), [1.0, *(measured[i] for i in judged)])
        print(
            f"latency table: tau {tau:.2f}, error {error:.1%}, {len(table.times)} layers timed, {len(models)} networks measured"
        )
    alone = 0.0
    for shape, row in list(zip(shapes, rows, strict=True))[:: max(1, 64 // twins)]:
        torch.manual_seed(0)
        twin = net()
        cut(twin, slimmer.structure, sup.keep(shape))
        for layer in twin.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        row["cpu"] = spent(lambda twin=twin: fit(twin, few, recipe, seed=0, progress=quiet, label="twin"))
        alone += row["cpu"]
        row["alone"] = evaluate(twin, x_test, y_test)[1]
        out.write_text(json.dumps({"cost": cost, "rows": rows}, indent=1))
    done = [r for r in rows if "alone" in r]
    gaps = [r["shared"] - r["alone"] for r in done]
    alone *= 64 / len(done)
    print(
        f"alone {alone:.0f} CPU-s for 64 ({len(done)} trained), together {sum(cost.values()):.0f}: {sum(cost.values()) / alone:.1%}; "
        f"shared minus alone {min(gaps):+.2%} to {max(gaps):+.2%}, mean {fmean(gaps):+.2%}; "
        f"{sum(g >= -0.01 for g in gaps)} of {len(gaps)} within a point"
    )


if __name__ == "__main__":
    main()
