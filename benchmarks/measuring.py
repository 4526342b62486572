"""What the method claims, tried: false alarms, power and coverage, beside the usual statistics.

    python -m benchmarks.measuring --burners 0 --out docs/results/measuring-HOST.csv     # and 1, 2

For each number of burner processes a core: 200 comparisons of a model with itself, 100 with 5 % more work on the
candidate's side (21 inferences against 20). Sessions are fresh in every comparison, in two processes; a budget of
10 s each. On the same sessions, in the same minute, the usual ways: 40 blocks of one side, then 40 of the other.
A row a comparison; --summary prints the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy.stats import mannwhitneyu

from hwopt.api.options import Options, feed_of
from hwopt.config.hardware import shipped
from hwopt.engine.host import usable_cores
from hwopt.latency.measure import SESSIONS, Candidate, written
from hwopt.latency.reference import small_model
from hwopt.latency.workers import Process
from hwopt.measuring.comparison import Comparison
from hwopt.measuring.rounds import measure
from hwopt.measuring.sides import Round

PARTS = 20
MARGIN = 0.03
BUDGET = 10.0
SEQUENTIAL = 40
BURN = "while True: pass"


def sequential(process: Process) -> dict[str, Any]:
    """All blocks of one side, then all of the other: means, medians, minima and a U test at 5 %."""
    rounds = {side: process.rounds([Round(order=(side,), session=(0, 0))] * SEQUENTIAL) for side in (0, 1)}
    a, b = ([blocks[0].seconds for blocks in rounds[side]] for side in (0, 1))
    return {
        "sequential_mean": statistics.mean(a) / statistics.mean(b),
        "sequential_median": statistics.median(a) / statistics.median(b),
        "sequential_minimum": min(a) / min(b),
        "u_test_p": float(mannwhitneyu(a, b).pvalue),
    }


def comparison(processes: list[Process], sides: list[Any], seed: int) -> tuple[dict[str, Any], Comparison]:
    start = time.perf_counter()
    for index, process in enumerate(processes):
        process.ask(
            "load", sides=sides, sessions=SESSIONS, reference=False, gap_seconds=None, seed=2 * seed + index
        )
    budget = max(BUDGET - (time.perf_counter() - start), 0.5)
    rounds = measure(
        processes,
        sides=2,
        sessions=SESSIONS,
        seed=seed,
        half_width=0.01,
        budget_seconds=budget,
        margin=MARGIN,
    )
    found = rounds.compare(1)
    interval, everything = found.interval(), found.interval_of_all()
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "all_low": everything.low,
        "all_high": everything.high,
        "verdict": found.verdict(MARGIN).value,
        "pairs": len(found.ratios),
        "clean_share": found.clean_share,
        "session_error": found.session_error(),
        "seconds": time.perf_counter() - start,
        **sequential(processes[seed % len(processes)]),
    }, found


def run(burners: int, out: Path, same: int, planted: int, pairs: TextIO | None) -> None:
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(burners * usable_cores())]
    new = not out.exists()
    try:
        with tempfile.TemporaryDirectory() as folder, out.open("a", newline="") as file:
            path = Path(folder) / "model.onnx"
            path.write_bytes(small_model())
            one = Candidate(
                model=path,
                runtime="onnxruntime",
                hardware=shipped("generic-cpu"),
                feed=feed_of(path, Options()),
                inferences=PARTS,
            )
            cases = [("same", [one, one])] * same
            cases += [("5 % slower", [one, replace(one, inferences=PARTS + 1)])] * planted
            order = np.random.default_rng(burners).permutation(len(cases))
            writer = None
            processes: list[Process] = []
            for done, index in enumerate(order):
                if done % 10 == 0:  # fresh processes now and then, fresh sessions always
                    for process in processes:
                        process.close()
                    processes = [Process(1), Process(1)]
                name, candidates = cases[index]
                sides = written(candidates, Path(folder))
                facts, found = comparison(processes, sides, int(index))
                row = {"burners": burners, "case": name, **facts}
                if pairs is not None:
                    line = {"burners": burners, "case": name, "sessions": found.sessions}
                    line |= {"ratios": found.ratios, "clean": found.clean}
                    pairs.write(json.dumps(line) + "\n")
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    if new:
                        writer.writeheader()
                writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
                file.flush()
                print(
                    f"{done + 1}/{len(order)} {name}: {row['estimate']:.4f} {row['verdict']}", file=sys.stderr
                )
            for process in processes:
                process.close()
    finally:
        for process_ in burning:
            process_.kill()


def share(values: list[bool]) -> str:
    return f"{sum(values)} of {len(values)}"


def summary(out: Path) -> None:
    rows = list(csv.DictReader(out.open()))
    truth = {"same": 1.0, "5 % slower": PARTS / (PARTS + 1)}
    print(
        "| burners a core | case | n | PASS | INCONCLUSIVE | FAIL | interval misses the truth | error median / p95 |"
        " undisturbed | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for burners in sorted({r["burners"] for r in rows}):
        for case, true in truth.items():
            mine = [r for r in rows if (r["burners"], r["case"]) == (burners, case)]
            if not mine:
                continue
            count = {v: sum(r["verdict"] == v for r in mine) for v in ("PASS", "INCONCLUSIVE", "FAIL")}
            missed = sum(not float(r["low"]) <= true <= float(r["high"]) for r in mine)
            errors = [abs(float(r["estimate"]) / true - 1) for r in mine]
            print(
                f"| {burners} | {case} | {len(mine)} | {count['PASS']} | {count['INCONCLUSIVE']} | {count['FAIL']} | "
                f"{missed} | {np.median(errors):.2%} / {np.percentile(errors, 95):.2%} | "
                f"{np.mean([float(r['clean_share']) for r in mine]):.0%} | "
                f"{np.median([float(r['seconds']) for r in mine]):.1f} |"
            )
    print("\n| burners a core | the same model, told apart by | false alarms | error p95 |")
    print("|---|---|---|---|")
    for burners in sorted({r["burners"] for r in rows}):
        mine = [r for r in rows if (r["burners"], r["case"]) == (burners, "same")]
        for name in ("sequential_mean", "sequential_median", "sequential_minimum"):
            values = [abs(float(r[name]) - 1) for r in mine]
            print(
                f"| {burners} | {name.replace('_', ' ')}, 3 % | {share([v > MARGIN for v in values])} | "
                f"{np.percentile(values, 95):.1%} |"
            )
        print(
            f"| {burners} | Mann-Whitney U, p < 0.05 | {share([float(r['u_test_p']) < 0.05 for r in mine])} | |"
        )
        claims = [float(r["low"]) > 1 or float(r["high"]) < 1 for r in mine]
        errors = [abs(float(r["estimate"]) - 1) for r in mine]
        print(
            f"| {burners} | hwopt, interval without 1 | {share(claims)} | {np.percentile(errors, 95):.1%} |"
        )
        fails = [r["verdict"] == "FAIL" for r in mine]
        print(f"| {burners} | hwopt, FAIL at 3 % | {share(fails)} | |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--burners", type=int, default=0, help="a core")
    parser.add_argument("--same", type=int, default=200)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, help="every pair, as lines of JSON")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.summary:
        summary(given.out)
    else:
        with nullcontext() if given.pairs is None else given.pairs.open("a") as pairs:
            run(given.burners, given.out, given.same, given.planted, pairs)


if __name__ == "__main__":
    main()
