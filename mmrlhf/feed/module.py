"""The data of one training run for a Lightning Trainer, with exact resume.

One pass of the training loader is the whole run, all epochs, so the Trainer runs `max_epochs=1`. What keeps a resume
exact under Lightning 2.6, beside what `loader` says:

- the position is kept here and not in the loader, of which only rank 0's state is saved;
- the position is the number of steps that were trained, which lags behind what the workers have prepared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.strategies import ParallelStrategy
from typing_extensions import override

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.loader import StepLoader
from mmrlhf.feed.plan import Quotas, StepPlan
from mmrlhf.feed.prefetch import ShardPrefetch, begin_prefetch, shard_uses
from mmrlhf.feed.steps import HeldOutSteps, RunPlan, TrainSteps
from mmrlhf.feed.weights import Mixing
from mmrlhf.summaries.trainings import Cell
from mmrlhf.tensors import StepBatch

# What a checkpoint remembers of the data, and what it means when that has changed.
_MEANING = {
    "shards": "shards (other data, or packed in another way)",
    "rows": "rows (another split, limit or data.selection)",
    "mixing": "mixing (another data.mixing)",
    "seed": "seed",
    "groups_per_step": "groups_per_step",
}


class PreferenceDataModule(L.LightningDataModule):
    """Training and held-out steps of one run.

    Args:
        dataset: encoded groups.
        train_indices: rows to train on.
        val_indices: rows to validate on, in this order, every one at weight 1.
        epochs: passes over the training rows; a fraction is rounded up to whole steps.
        max_steps: optimizer steps; with `epochs`, whichever ends first.
        groups_per_step: groups of one optimizer step, over all ranks.
        token_budget: the most tokens in a micro-batch.
        seed: of the order.
        num_workers: processes that read and encode; no effect on the result.
        mixing: what an epoch is made of; the default sees every row once.

    Raises:
        ConfigError: no end of training given, or numbers below 1.
        DataError: no groups to train on.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        *,
        train_indices: Sequence[int] | np.ndarray,
        val_indices: Sequence[int] | np.ndarray = (),
        epochs: float | None = None,
        max_steps: int | None = None,
        groups_per_step: int,
        token_budget: int,
        seed: int,
        num_workers: int = 0,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        rows = np.sort(np.asarray(train_indices, dtype=np.int64))
        if not len(rows):
            raise DataError("no groups to train on", fix="lower the held-out share, or give more data")
        if (rows[1:] == rows[:-1]).any():
            raise ValueError("training rows repeat")
        mixing = mixing or Mixing()
        window, quotas = mixing.shuffle_window, mixing.quotas(dataset.index, rows)
        shards = np.asarray(dataset.index.column("shard"))[rows] if window is not None else None
        content, cells = rows.astype("<i8").tobytes(), _quota_bytes(quotas)
        self._facts = {
            "shards": dataset.index.digest[:16],
            "rows": _digest(content, 8),
            "mixing": _digest(f"{window}".encode() + cells, 8),
        }
        digest = _digest(f"{dataset.index.digest}\0{window}\0".encode() + content + cells, 16)
        self._dataset, self._num_workers, self._token_budget = dataset, num_workers, token_budget
        self._plan = RunPlan(rows, digest, seed, groups_per_step, shards, window, quotas)
        self._val_rows = np.asarray(val_indices, dtype=np.int64)
        self.total_steps = _count_steps(self._plan.steps_per_epoch, epochs, max_steps)
        self.num_groups = len(rows) + len(self._val_rows)
        self._start = 0

    def describe(self) -> dict[str, Any]:
        """Count what an epoch consists of: groups seen, steps, places of the last step that only fill it up.

        With a mixture or balance also, for each cell, the groups that there are and the places that they have.
        """
        plan, quotas = self._plan, self._plan.quotas
        places = plan.steps_per_epoch * plan.groups_per_step
        found: dict[str, Any] = {
            "groups_per_epoch": plan.groups_per_epoch,
            "steps_per_epoch": plan.steps_per_epoch,
            "padded_per_epoch": places - plan.groups_per_epoch,
        }
        if quotas is not None:
            sizes = np.bincount(quotas.cell_of_row).tolist()
            cells = zip(quotas.names, sizes, quotas.places.tolist(), strict=True)
            found["cells"] = {name: Cell(size, places) for name, size, places in cells}
        return found

    def first_epoch(self) -> list[StepPlan]:
        """The steps of the first epoch as they are planned, for all ranks together; nothing is read for it."""
        return self._plan.steps(0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training rows."""
        return self._plan.steps_per_epoch

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._start = 0  # Lightning restores a checkpoint's state after this.
            if self.trainer is not None and self.trainer.max_epochs != 1:
                raise ConfigError(
                    "one pass of the training loader is the whole run",
                    given=f"Trainer(max_epochs={self.trainer.max_epochs})",
                    expected="Trainer(max_epochs=1), with epochs or max_steps given to the data",
                )

    @override
    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Leave a step where it is: the method moves one micro-batch at a time."""
        return batch

    @override
    def train_dataloader(self) -> StepLoader:
        return StepLoader(
            self._train_steps,
            start=lambda: self._start,
            length=self.total_steps,
            num_workers=self._num_workers,
            prefetch=self._begin_prefetch,
        )

    @override
    def val_dataloader(self) -> StepLoader | list[StepLoader]:
        length = -(-len(self._val_rows) // self._plan.groups_per_step)
        if not length:
            return []
        return StepLoader(self._val_steps, start=lambda: 0, length=length, num_workers=self._num_workers)

    def _begin_prefetch(self, start: int) -> ShardPrefetch | None:
        """Fetch the shards of the steps from `start` on ahead of use, where they are remote."""
        return begin_prefetch(self._dataset.index, partial(shard_uses, self._plan, start=start, end=self.total_steps))

    def _train_steps(self) -> TrainSteps:
        rank, world_size = self._place()
        return TrainSteps(
            self._dataset, self._plan, token_budget=self._token_budget, rank=rank, world_size=world_size
        )  # fmt: skip

    def _val_steps(self) -> HeldOutSteps:
        rank, world_size = self._place()
        return HeldOutSteps(
            self._dataset,
            self._val_rows,
            groups_per_step=self._plan.groups_per_step,
            token_budget=self._token_budget,
            rank=rank,
            world_size=world_size,
        )

    def _place(self) -> tuple[int, int]:
        """(rank, ranks) among those that see different data: a strategy may shard one model over several processes."""
        strategy = self.trainer.strategy if self.trainer is not None else None
        if isinstance(strategy, ParallelStrategy):
            place = strategy.distributed_sampler_kwargs
            return place["rank"], place["num_replicas"]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    @override
    def state_dict(self) -> dict[str, Any]:
        step = self._start
        if self.trainer is not None:
            # "processed" is raised between the optimizer's step and the hooks that save checkpoints.
            step = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]
        return self._identity() | {"epoch": step // self._plan.steps_per_epoch, "step": step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's step.

        Raises:
            ConfigError: the checkpoint belongs to other data, another seed or step size; says which.
        """
        differs = {name: (state_dict.get(name), now) for name, now in self._identity().items()}
        differs = {name: values for name, values in differs.items() if values[0] != values[1]}
        if differs:
            raise ConfigError(
                "checkpoint cannot be continued: the order of the data would change",
                where="; ".join(_MEANING[name] for name in differs),
                given="; ".join(f"{name}: checkpoint {old}, now {now}" for name, (old, now) in differs.items()),
                expected="the same data, split, filters, mixture, seed and groups per step",
                fix="restore the settings, or start anew without the checkpoint",
            )
        self._start = int(state_dict["step"])

    def _identity(self) -> dict[str, Any]:
        return self._facts | {"seed": self._plan.seed, "groups_per_step": self._plan.groups_per_step}


def _count_steps(steps_per_epoch: int, epochs: float | None, max_steps: int | None) -> int:
    if epochs is None and max_steps is None:
        raise ConfigError("no end of training given", expected="epochs, max_steps or both")
    if (epochs is not None and epochs <= 0) or (max_steps is not None and max_steps < 1):
        raise ConfigError("nothing to train", given=f"epochs={epochs}, max_steps={max_steps}", expected="above 0")
    # The subtraction keeps 0.1 * 30, which is slightly above 3 in floating point, from becoming 4.
    limits = [math.ceil(epochs * steps_per_epoch - 1e-9)] if epochs is not None else []
    return max(1, min(limits + ([max_steps] if max_steps is not None else [])))


def _quota_bytes(quotas: Quotas | None) -> bytes:
    if quotas is None:
        return b""
    return f"{quotas.names} {quotas.places.tolist()}".encode() + quotas.cell_of_row.astype("<i8").tobytes()


def _digest(content: bytes, size: int) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()
