"""Verilog of a wired network: written, simulated bit by bit, synthesized; each by a tool that may be absent."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hwopt.errors import EngineMissingError, StageFailedError
from hwopt.fpga.wiring import Wires

TOP: Final = "net"
_MODULES: Final = ("shift_adder", "binop", "negative", "mux", "multiplier", "lookup_table")
_FIXES: Final = {
    "yosys": "install Yosys (apt install yosys)",
    "iverilog": "install Icarus Verilog (apt install iverilog)",
    "vvp": "install Icarus Verilog (apt install iverilog)",
}
_FAMILIES: Final = {
    "xc7": "synth_xilinx -family xc7 -nosrl",
    "xcup": "synth_xilinx -family xcup -nosrl",
    "ecp5": "synth_ecp5",
    "ice40": "synth_ice40",
}
_FLIPFLOPS: Final = re.compile(r"FD[RSCP]E(_1)?|TRELLIS_FF|SB_DFF\w*")
_LUTS: Final = re.compile(r"LUT[1-6]|SB_LUT4|INV")  # an inverter that nothing absorbs takes a table too


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Verilog in a folder."""

    folder: Path
    stages: int  # cycles from a vector to its result; 0 is combinational
    predicted_lut: float
    predicted_ff: int
    inputs: Sequence[tuple[int, int]]  # bits of each input, and of what is behind the point
    outputs: Sequence[tuple[bool, int, int]]  # signed, bits, bits behind the point

    @property
    def files(self) -> list[Path]:
        """Sources in the order of their names."""
        return sorted(self.folder.glob("*.v"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """What Yosys counted after mapping."""

    lut: int
    ff: int
    dsp: int
    bram: int
    cells: Mapping[str, int]
    tool: str


def write(wires: Wires, folder: Path, levels: int = 5) -> Project:
    """Write the network as pipelined Verilog.

    Args:
        levels: adders between two registers; fewer make more stages and a faster clock.
    """
    from da4ml.codegen.rtl import verilog
    from da4ml.trace import to_pipeline
    from da4ml.types import minimal_kif

    pipeline = to_pipeline(wires.logic, levels, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.v"):
        old.unlink()
    text = ""
    for name, code in verilog.pipeline_logic_gen(pipeline, TOP, False, register_layers=1).items():
        (folder / f"{name}.v").write_text(code)
        text += code
    static = Path(verilog.__file__).parent / "source"
    for module in _MODULES:
        if re.search(rf"\b{module}\b", text):
            (folder / f"{module}.v").write_bytes((static / f"{module}.v").read_bytes())
    bits = [_width(*minimal_kif(q)) for q in pipeline.inp_qint]
    outs = [(bool(k), _width(k, i, f)[0], int(f)) for k, i, f in map(minimal_kif, pipeline.out_qint)]
    return Project(
        folder=folder,
        stages=len(pipeline.solutions) + 1,
        predicted_lut=float(wires.logic.cost),
        predicted_ff=int(pipeline.reg_bits),
        inputs=bits,
        outputs=outs,
    )


def _width(k: Any, i: Any, f: Any) -> tuple[int, int]:
    return int(k) + int(i) + int(f), int(f)


def simulate(project: Project, codes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Clock vectors through the Verilog, one a cycle: shape (samples, inputs) to (samples, outputs).

    Raises:
        EngineMissingError: Icarus Verilog is not installed.
        StageFailedError: it refuses the sources.
    """
    wide_in, wide_out = sum(b for b, _ in project.inputs), sum(b for _, b, _ in project.outputs)
    count = len(codes)
    folder = project.folder / "simulation"
    folder.mkdir(exist_ok=True)
    (folder / "vectors.hex").write_text("\n".join(_packed(row, project.inputs) for row in codes) + "\n")
    (folder / "bench.v").write_text(
        f"""`timescale 1 ns / 1 ps
module bench;
  reg clk = 0;
  reg [{wide_in - 1}:0] x, vectors [0:{count - 1}];
  wire [{wide_out - 1}:0] y;
  integer i;
  {TOP} dut (clk, x, y);
  always #1 clk = ~clk;
  initial begin
    $readmemh("vectors.hex", vectors);
    for (i = 0; i < {count + project.stages}; i = i + 1) begin
      x = i < {count} ? vectors[i] : 0;
      @(negedge clk);
      $display("%h", y);
    end
    $finish;
  end
endmodule
"""
    )
    program = folder / "bench.vvp"
    sources = [str(path) for path in project.files]
    call(["iverilog", "-g2005", "-o", str(program), str(folder / "bench.v"), *sources])
    lines = call(["vvp", "-n", program.name], folder).splitlines()
    found = lines[project.stages - 1 : project.stages - 1 + count]
    if len(found) != count:
        raise StageFailedError("the simulation ended early", fix="report it with the model")
    return np.array([_unpacked(int(line, 16), project.outputs) for line in found])


def _packed(row: npt.NDArray[np.float64], inputs: Sequence[tuple[int, int]]) -> str:
    word, place = 0, 0
    for value, (bits, _) in zip(row, inputs, strict=True):
        word |= (int(value) & ((1 << bits) - 1)) << place
        place += bits
    return f"{word:x}"


def _unpacked(word: int, outputs: Sequence[tuple[bool, int, int]]) -> list[float]:
    found, place = [], 0
    for signed, bits, behind in outputs:
        value = (word >> place) & ((1 << bits) - 1) if bits else 0
        if signed and bits and value >> (bits - 1):
            value -= 1 << bits
        found.append(value / 2.0**behind)
        place += bits
    return found


def synthesize(project: Project, family: str = "xc7") -> Synthesis:
    """Map the Verilog to a family's cells.

    Raises:
        EngineMissingError: Yosys is not installed.
        StageFailedError: it stopped before it counted; some builds do so with exit code 0.
    """
    script, stat = project.folder / "synthesis.ys", project.folder / "cells.txt"
    stat.unlink(missing_ok=True)
    names = " ".join(path.name for path in project.files)
    pads = " -noiopad" if family.startswith("xc") else ""
    script.write_text(
        f"read_verilog {names}\n{_FAMILIES[family]}{pads} -flatten -top {TOP}\ntee -q -o {stat.name} stat\n"
        if family.startswith("xc")
        else f"read_verilog {names}\n{_FAMILIES[family]} -top {TOP}\ntee -q -o {stat.name} stat\n"
    )
    call(["yosys", "-q", "-s", script.name], project.folder)
    if not stat.exists():
        raise StageFailedError(
            "Yosys stopped before it counted cells",
            fix="use a native build, 0.23 or newer (apt install yosys)",
        )
    cells = {
        name: int(count)
        for name, count in re.findall(r"^\s+(\w+)\s+(\d+)\s*$", stat.read_text(), re.MULTILINE)
    }
    counted = {name: n for name, n in cells.items() if name.isupper() or "_" in name}
    if not any(_LUTS.fullmatch(name) for name in counted):
        raise StageFailedError("Yosys counted no lookup table", fix="look at cells.txt beside the Verilog")
    return Synthesis(
        # A carry cell of an ECP5 is two tables.
        lut=sum(n for name, n in counted.items() if _LUTS.fullmatch(name)) + 2 * counted.get("CCU2C", 0),
        ff=sum(n for name, n in counted.items() if _FLIPFLOPS.fullmatch(name)),
        dsp=sum(n for name, n in counted.items() if name.startswith("DSP") or name == "MULT18X18D"),
        bram=sum(n for name, n in counted.items() if name.startswith("RAMB") or name == "DP16KD"),
        cells=counted,
        tool=version("yosys"),
    )


def version(tool: str) -> str:
    """First line of what a tool says of itself."""
    return call([tool, "-V"]).splitlines()[0].strip()


def call(command: list[str], folder: Path | None = None, seconds: float = 1800.0) -> str:
    """Run a tool and return what it printed.

    Raises:
        EngineMissingError: it is not installed.
        StageFailedError: it failed, with its last words, or took too long.
    """
    if shutil.which(command[0]) is None:
        raise EngineMissingError(f"{command[0]} is not installed", fix=_FIXES.get(command[0]))
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise StageFailedError(f"{command[0]} took longer than {seconds:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StageFailedError(f"{command[0]} failed: {said[-1] if said else 'without a word'}")
    return done.stdout
