"""The groups that could not be read, over all ranks and restarts, and the end of the run when there are too many."""

from __future__ import annotations

from typing import Any

import lightning as L
from typing_extensions import override

from mmrlhf.errors import DataError
from mmrlhf.processes import gather_ranks
from mmrlhf.types import StepBatch

MAX_DAMAGED_SHARE = 0.001


class Quarantine(L.Callback):
    """Collects the keys of damaged groups behind every step, and stops every rank in the same step.

    The budget is 0.1% of the groups, at least one. What the loader found ahead counts once its step has been trained,
    so that the ranks exchange keys at a place that they all reach. The keys are kept in checkpoints.

    Args:
        num_groups: groups of the run, trained and held out.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._keys: set[str] = set()

    @property
    def keys(self) -> list[str]:
        """The groups that could not be read so far, on any rank."""
        return sorted(self._keys)

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
        return {"keys": self.keys}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._keys = set(state_dict["keys"])

    def _add(self, trainer: L.Trainer, batch: StepBatch) -> None:
        """Count a step's damaged groups.

        Raises:
            DataError: more than the budget, over all ranks.
        """
        new = set(batch.quarantined) - self._keys
        if not trainer.strategy.reduce_boolean_decision(bool(new), all=False):
            return
        self._keys.update(*gather_ranks(new))
        budget = max(1, int(MAX_DAMAGED_SHARE * self._num_groups))
        if len(self._keys) > budget:
            raise DataError(
                "too many groups cannot be read",
                where=", ".join(self.keys[:8]),
                given=f"{len(self._keys)} of {self._num_groups} groups, up to step {trainer.global_step}",
                expected=f"at most {budget}",
                fix="check the shards against their manifest, and pack them again if they are damaged",
            )
