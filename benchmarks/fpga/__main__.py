"""``python -m benchmarks.fpga streaming | overlay | unrolled | large``: published designs against the estimator."""

from __future__ import annotations

import sys

import numpy as np
from scipy.stats import spearmanr

from benchmarks.fpga import large, overlay, streaming, unrolled
from hwopt.fpga import bands


def show_streaming() -> None:
    results = []
    print(
        "case                        in file  II error  latency error  DSP error  LUT ratio  FF ratio  note"
    )
    for case in streaming.cases():
        if case["id"] in streaming.OUTSIDE:
            print(f"{case['id']:28s}outside: {streaming.OUTSIDE[case['id']]}")
            continue
        r = streaming.run(case)
        results.append(r)
        cells = [
            f"{r.errors[n]:+9.2%}" if n in r.errors else "        –"
            for n in ("ii_cycles", "latency_us", "dsp")
        ]
        ratios = [f"{1 + r.errors[n]:8.2f}" if n in r.errors else "       –" for n in ("lut", "ff")]
        mark = "fitted" if r.calibration else "yes" if r.in_the_file else "no"
        print(
            f"{r.id:28s}{mark:8s}{cells[0]} {cells[1]:>13s}  {cells[2]}  {ratios[0]}   {ratios[1]}  {r.note}"
        )
    summary(results)


def show_overlay() -> None:
    found = overlay.rows()
    groups: dict[tuple[str, str, str, bool], list[overlay.Row]] = {}
    for row in found:
        groups.setdefault((row.board, row.sdk, row.kind, row.fitted), []).append(row)
    for (board, sdk, kind, fitted), members in groups.items():
        for row in members:
            print(
                f"{board:8s}SDK {sdk:6s}{kind:9s}{'fitted ' if row.fitted else '       '}{row.network:24s}{row.error:+7.1%}{'' if row.in_the_file else '   not in the file'}"
            )
        size = np.abs([r.error for r in members])
        print(
            f"{board:8s}SDK {sdk:6s}{kind:9s}{'fitted ' if fitted else 'held out'}: {len(members)} rows, mean {size.mean():.1%}, worst {size.max():.1%}"
        )
    frames = [r for r in found if r.in_the_file and not r.fitted and r.sdk == "2.5" and r.kind == "frames"]
    for text, members in (
        ("one core", [r for r in frames if r.cores == 1]),
        ("several cores", [r for r in frames if r.cores > 1]),
    ):
        size = np.abs([r.error for r in members])
        print(
            f"file, SDK 2.5, frames a second, held out, {text}: {len(size)} rows, mean {size.mean():.1%}, worst {size.max():.1%}"
        )


def summary(results: list[streaming.Result]) -> None:
    tested = [r for r in results if not r.calibration and "latency_us" in r.errors]
    for text, rows in (("all", tested), ("in the file", [r for r in tested if r.in_the_file])):
        size = np.abs([r.errors["latency_us"] for r in rows])
        print(f"latency, {text}: {len(rows)} designs, mean {size.mean():.1%}, worst {size.max():.1%}")
    inside = [bands.LATENCY.low <= 1 / (1 + r.errors["latency_us"]) <= bands.LATENCY.high for r in tested]
    print(f"latency inside its interval: {sum(inside)} of {len(inside)}")
    rank = spearmanr(
        [r.found["latency_us"] for r in tested], [r.measured["latency_us"] for r in tested]
    ).statistic
    print(f"rank correlation of latency: {rank:.3f}")
    exact = [r.errors["ii_cycles"] == 0 for r in results if "ii_cycles" in r.errors]
    print(f"interval exact: {sum(exact)} of {len(exact)}")
    for name in ("lut", "ff"):
        rows = [r for r in results if name in r.errors]
        held = [
            bands.of(r.tool, name).low <= 1 / (1 + r.errors[name]) <= bands.of(r.tool, name).high
            for r in rows
        ]
        out = []
        for r in rows:  # a band from the other designs of the flow alone
            others = [1 / (1 + o.errors[name]) for o in rows if o.tool == r.tool and o is not r]
            out.append(min(others) <= 1 / (1 + r.errors[name]) <= max(others))
        rank = spearmanr([r.found[name] for r in rows], [r.measured[name] for r in rows]).statistic
        print(
            f"{name}: {sum(held)} of {len(rows)} inside the band; {sum(out)} inside the span of the others of their flow; rank correlation {rank:.2f}"
        )


if __name__ == "__main__":
    {"streaming": show_streaming, "overlay": show_overlay, "unrolled": unrolled.show, "large": large.show}[
        sys.argv[1] if len(sys.argv) > 1 else "streaming"
    ]()
