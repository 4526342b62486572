"""What a network learns from beside the labels: another network, loaded from its artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.stage import StageContext
from hwopt.errors import ConfigError
from hwopt.pruning.masks import KeepZeros
from hwopt.training.batches import Split
from hwopt.training.evaluation import logits_of
from hwopt.training.features import AttentionTransfer
from hwopt.training.loop import History, fit
from hwopt.training.settings import Distillation, FitSettings
from hwopt.training.step import Hook, Teacher


@dataclass(slots=True, kw_only=True)
class Lesson:
    """One training of a network under a teacher; what finetune, prune and the recipes share."""

    data: Split
    seed: int
    ctx: StageContext
    teacher: nn.Module | None = None
    distill: Distillation | None = None
    sparse: bool = False  # zeros stay zero
    resumes: bool = False  # it trains once, so that what a kill left is of this training
    logits: Teacher | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """The teacher's answers, once: they serve every training of this lesson."""
        if self.teacher is not None and self.distill is not None:
            self.ctx.progress(f"the teacher answers {len(self.data.x):,} samples")
            self.logits = Teacher(logits=logits_of(self.teacher, self.data.x), settings=self.distill)

    def give(
        self,
        student: nn.Module,
        settings: FitSettings,
        label: str,
        hooks: tuple[Hook, ...] = (),
    ) -> History:
        """Train ``student`` in place."""
        extra: list[Hook] = [*hooks]
        if self.sparse:
            extra.append(KeepZeros(student))
        matching = None
        if self.teacher is not None and self.distill is not None and self.distill.features:
            matching = AttentionTransfer(
                student, self.teacher, self.distill.layers, self.distill.features, self.data.x[:2]
            )
            extra.append(matching)
        try:
            return fit(
                student,
                self.data,
                settings,
                seed=self.seed,
                progress=self.ctx.progress,
                label=label,
                teacher=self.logits,
                hooks=extra,
                keep=self.ctx.keep if self.resumes else None,
                ledger=self.ctx.ledger,
            )
        finally:
            if matching is not None:
                matching.close()


def teacher_of(
    ctx: StageContext, inputs: Mapping[str, Artifact], distill: Distillation | None
) -> nn.Module | None:
    """The network of port ``teacher``, else of port ``source``; None without distillation.

    Raises:
        ConfigError: distillation is asked for, and no teacher is given.
    """
    if distill is None:
        return None
    given = inputs.get("teacher") or inputs.get("source")
    if given is None:
        raise ConfigError("distillation needs a teacher", fix="give --source CHECKPOINT, or distill: null")
    return checkpoints.load(given.path, ctx.import_root, ctx.model).module.eval()
