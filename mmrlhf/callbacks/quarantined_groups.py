"""The groups that training could not read, over all ranks and restarts, and its end when there are too many."""

from __future__ import annotations

from typing import Any

import lightning as L
from typing_extensions import override

from mmrlhf.processes import gather_ranks
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.tensors import StepBatch


class QuarantinedGroups(L.Callback):
    """Collects damaged groups behind every step, and stops every rank in the same step.

    What the loader found ahead counts once its step has been trained, so that the ranks exchange keys at a place that
    they all reach. The keys are kept in checkpoints.

    Args:
        quarantine: of the run; holds what the passes before it left out.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self.quarantine = quarantine

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self._add(trainer, batch)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, batch)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"reasons": dict(self.quarantine.reasons)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.quarantine.update(state_dict["reasons"])
        self.quarantine.check("what the run had left out before it stopped")

    def _add(self, trainer: L.Trainer, batch: StepBatch) -> None:
        """Count a step's damaged groups; raises DataError where there are too many, over all ranks."""
        new = {key: why for key, why in batch.quarantined.items() if key not in self.quarantine.reasons}
        if not trainer.strategy.reduce_boolean_decision(bool(new), all=False):
            return
        for reasons in gather_ranks(new):
            self.quarantine.update(reasons)
        self.quarantine.check(f"up to step {trainer.global_step}")
