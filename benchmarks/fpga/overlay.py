"""Published frame rates of the DPU against the overlay model; the constants are those of the hardware profiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fpga.networks import NETWORKS
from hwopt.config.hardware import shipped
from hwopt.core.fpga import Overlay
from hwopt.fpga.overlay import host_us, units_of

HERE = Path(__file__).parent
FITTED = ("resnet50_v15", "mobilenet_v2", "yolov3_voc")  # on the KV260, SDK 2.5
_BOARDS = {"KV260": "kria-kv260", "ZCU104": "zcu104", "ZCU102": "zcu102", "Ultra96": "kria-kv260"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: str
    network: str
    board: str
    sdk: str
    cores: int
    in_the_file: bool
    kind: str  # latency of one thread, or frames a second of several
    fitted: bool
    error: float  # of the time of a frame


def rows() -> list[Row]:
    found, seen = [], set()
    for case in yaml.safe_load((HERE / "overlay.yaml").read_text()):
        board = next((b for b in _BOARDS if case["device"].startswith(b)), None)
        if case["network"] is None or board is None or case["array"] not in {"B4096", "B1600"}:
            continue
        if (case["device"], case["network"], case["sdk"]) in seen:
            continue
        seen.add((case["device"], case["network"], case["sdk"]))
        array = _array(board, case)
        layers = NETWORKS[case["network"]]()
        fitted = case["network"] in FITTED and board == "KV260" and str(case["sdk"]) == "2.5"
        one = sum(u.cycles for u in units_of(layers, array)) / array.clock_mhz
        many = sum(u.cycles for u in units_of(layers, array, case["cores"])) / array.clock_mhz / case["cores"]
        common = {
            "id": case["id"],
            "network": case["network"],
            "board": board,
            "sdk": str(case["sdk"]),
            "in_the_file": case["in_the_file"],
            "fitted": fitted,
        }
        if case["single_thread_latency_us"]:
            found.append(
                Row(
                    **common,
                    cores=1,
                    kind="latency",
                    error=(one + host_us(layers, array)) / case["single_thread_latency_us"] - 1,
                )
            )
        if case["multi_thread_fps"]:
            on_fit = fitted or (
                case["network"] == "resnet50_v15"
                and board in {"ZCU104", "ZCU102"}
                and str(case["sdk"]) == "2.5"
            )
            found.append(
                Row(
                    **common | {"fitted": on_fit},
                    cores=case["cores"],
                    kind="frames",
                    error=many * case["multi_thread_fps"] / 1e6 - 1,
                )
            )
    return found


def _array(board: str, case: dict[str, Any]) -> Overlay:
    fabric = shipped(_BOARDS[board]).fpga
    assert fabric is not None
    array = fabric.overlays["dpu-b4096"]
    changed: dict[str, Any] = {"clock_mhz": float(case["clock_mhz"])}
    if case["array"] == "B1600":  # the same constants on a smaller array: an unseen size on an unseen device
        changed |= {
            "array": (8, 10, 10),
            "bank_bytes": 8 * 10 * 2048,
            "ddr_gbs": None,
            "bytes_per_cycle": array.bytes_per_cycle * 10 / 16,
        }
    return array.model_copy(update=changed)
