"""``python -m benchmarks.fpga streaming | overlay | unrolled | large``: published designs against the estimator."""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.fpga import large, overlay, streaming, unrolled


def show_streaming() -> None:
    print(
        "case                        in file  II error  latency error  DSP error  LUT ratio  FF ratio  note"
    )
    for case in streaming.cases():
        if case["id"] in streaming.OUTSIDE:
            print(f"{case['id']:28s}outside: {streaming.OUTSIDE[case['id']]}")
            continue
        r = streaming.run(case)
        cells = [
            f"{r.errors[n]:+9.2%}" if n in r.errors else "        –"
            for n in ("ii_cycles", "latency_us", "dsp")
        ]
        ratios = [f"{1 + r.errors[n]:8.2f}" if n in r.errors else "       –" for n in ("lut", "ff")]
        mark = "fitted" if r.calibration else "yes" if r.in_the_file else "no"
        print(
            f"{r.id:28s}{mark:8s}{cells[0]} {cells[1]:>13s}  {cells[2]}  {ratios[0]}   {ratios[1]}  {r.note}"
        )


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
    single = np.abs(
        [r.error for r in found if r.in_the_file and not r.fitted and r.cores == 1 and r.sdk == "2.5"]
    )
    several = np.abs(
        [r.error for r in found if r.in_the_file and not r.fitted and r.cores > 1 and r.sdk == "2.5"]
    )
    print(
        f"file, SDK 2.5, held out: one core {len(single)} rows, mean {single.mean():.1%}, worst {single.max():.1%}; several cores {len(several)} rows, mean {several.mean():.1%}, worst {several.max():.1%}"
    )


if __name__ == "__main__":
    {"streaming": show_streaming, "overlay": show_overlay, "unrolled": unrolled.show, "large": large.show}[
        sys.argv[1] if len(sys.argv) > 1 else "streaming"
    ]()
