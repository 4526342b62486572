"""Analytic cost of an FPGA design: folding, cycles, resources, fits or not."""

from __future__ import annotations

from collections.abc import Mapping

from hwopt.core.artifact import Artifact
from hwopt.core.canonical import pretty_json
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.fpga.estimate import Wish, estimate_model
from hwopt.fpga.record import latency_ms, to_json
from hwopt.stages.estimate.spec import EstimateConfig


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: EstimateConfig) -> StageResult:
    """Lay the network out on the fabric of the target."""
    if ctx.hardware is None or ctx.hardware.fpga is None:
        raise StageFailedError("estimate needs a hardware profile with a section `fpga`")
    wish = Wish(
        layout=config.layout,
        flow=config.flow,
        frames_per_second=config.frames_per_second,
        overlay=config.overlay,
        cores=config.cores,
        clock_mhz=config.clock_mhz,
    )
    design, found = estimate_model(inputs["model"].path, ctx.hardware.fpga, wish)
    facts = to_json(design, found)
    table = ctx.workdir / "layers.json"
    table.write_text(pretty_json(facts["layers"]))
    latency = latency_ms(design)
    lacking = "; ".join([*design.short, *([design.missed] if design.missed else [])])
    ctx.progress(
        f"estimate: {design.cycles.estimate:,.0f} cycles, {latency['p50']:.4f} ms at {design.clock_mhz:g} MHz, "
        f"{design.verdict}" + (f": {lacking}" if lacking else "")
    )
    return StageResult(
        files={"layers": table},
        facts={
            "tier": Tier.ESTIMATED.value,
            "fits": design.fits,
            "latency_ms": latency,
            "fpga": facts,
        },
    )
