"""One rank's share of an optimizer step, made from nothing but the step's number.

A step's number fixes its groups (see `plan`), so steps can be made by any worker, in any order, and again after a
restart. Responses that are read in turn stand in an order that the seed, the step and the query draw; held-out ones in
one that never changes.

Damage that is found only now (a file that broke after it was packed) does not stop a run: a fixed neighbour takes the
group's place at weight 0, and the group's key is reported in the step, for who counts them over all ranks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.plan import Quotas, StepPlan, epoch_order, fill_places, micro_batches, num_steps, plan_step
from mmrlhf.records.quarantine import reason_of
from mmrlhf.tensors import EncodedGroup, StepBatch
from mmrlhf.tokens.in_turn import drawn_order, in_order
from mmrlhf.tokens.packing import pack_groups

LOG = logging.getLogger(__name__)
MAX_DAMAGED_IN_A_ROW = 20


@dataclass(frozen=True)
class RunPlan:
    """What fixes every step of a run: rows ascending (N,), the dataset's digest, the seed and the step size.

    shards: the shard of each row (N,), and window: shards per shuffle window; None shuffles all rows together.
    quotas: how often an epoch sees which rows; None: every row once.
    """

    rows: np.ndarray
    digest: str
    seed: int
    groups_per_step: int
    shards: np.ndarray | None = None
    window: int | None = None
    quotas: Quotas | None = None

    @property
    def groups_per_epoch(self) -> int:
        """Groups that an epoch sees at weight 1, counted as often as it sees them."""
        return len(self.rows) if self.quotas is None else int(self.quotas.places.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return num_steps(self.groups_per_epoch, self.groups_per_step)

    def order(self, epoch: int) -> np.ndarray:
        """The rows in an epoch's order (groups_per_epoch,)."""
        seeded = {"digest": self.digest, "seed": self.seed, "epoch": epoch}
        rows, shards = self.rows, self.shards
        if self.quotas is not None:
            places = fill_places(rows, self.quotas, **seeded)
            rows, shards = rows[places], shards[places] if shards is not None else None
        return epoch_order(rows, **seeded, shards=shards, window=self.window)

    def steps(self, epoch: int) -> list[StepPlan]:
        """All steps of an epoch, for all ranks together."""
        order, groups = self.order(epoch), self.groups_per_step
        return [
            plan_step(order, epoch=epoch, step=step, groups_per_step=groups) for step in range(self.steps_per_epoch)
        ]


class TrainSteps(Dataset[StepBatch]):
    """Item s is optimizer step s, counted over all epochs: this rank's micro-batches of it."""

    def __init__(self, dataset: GroupDataset, plan: RunPlan, *, token_budget: int, rank: int, world_size: int) -> None:
        self._plan = plan
        self._share = StepShare(
            dataset, plan.rows, token_budget=token_budget, rank=rank, world_size=world_size, seed=plan.seed
        )
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> StepBatch:
        epoch, step_of_epoch = divmod(step, self._plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._plan.order(epoch)
        groups = self._plan.groups_per_step
        planned = plan_step(self._order[1], epoch=epoch, step=step_of_epoch, groups_per_step=groups)
        return self._share.make(replace(planned, step=step))


class HeldOutSteps(Dataset[StepBatch]):
    """Item s holds rows [s B, (s + 1) B) in the order given, every one at weight 1; the last item may be smaller."""

    def __init__(
        self,
        dataset: GroupDataset,
        rows: np.ndarray,
        *,
        groups_per_step: int,
        token_budget: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._rows, self._groups_per_step = rows, groups_per_step
        self._share = StepShare(dataset, rows, token_budget=token_budget, rank=rank, world_size=world_size)

    def __getitem__(self, step: int) -> StepBatch:
        rows = self._rows[step * self._groups_per_step : (step + 1) * self._groups_per_step]
        return self._share.make(StepPlan(0, step, rows, np.ones(len(rows), np.float32)))


class StepShare:
    """Loads and packs one rank's share of planned steps.

    Args:
        seed: of the orders in which responses are read, another for each step; None: one order in all of them.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        rows: np.ndarray,
        *,
        token_budget: int,
        rank: int,
        world_size: int,
        seed: int | None = None,
    ) -> None:
        self._seed = seed
        self._dataset, self._rows = dataset, np.sort(rows)
        self._token_budget, self._rank, self._world_size = token_budget, rank, world_size

    def make(self, plan: StepPlan) -> StepBatch:
        """Make this rank's StepBatch of a step.

        A rank that has no groups in some round, which the others have, gets the step's cheapest group at weight 0.
        The rounds follow from estimates, which all ranks share; a micro-batch that turns out above the budget is split.
        """
        costs = [self._dataset.cost(row) for row in plan.indices]
        bins = micro_batches(costs, token_budget=self._token_budget, world_size=self._world_size)
        cheapest = min(range(len(costs)), key=lambda i: (costs[i], i))
        damaged: dict[str, str] = {}
        batches = []
        padded = lost = 0
        for members in bins[self._rank :: self._world_size]:
            chosen = [(i, float(plan.weights[i])) for i in members] or [(cheapest, 0.0)]
            groups = [self._load(int(plan.indices[i]), weight, damaged) for i, weight in chosen]
            groups = [self._as_read(group, plan.step) for group in groups]
            padded += sum(plan.weights[i] == 0 for i in members)
            lost += sum(weight > 0 and group.weight == 0 for (_, weight), group in zip(chosen, groups, strict=True))
            batches += [pack_groups(part) for part in self._within_budget(groups)]
        return StepBatch(
            epoch=plan.epoch,
            step=plan.step,
            micro_batches=tuple(batches),
            num_groups=plan.num_groups,
            quarantined=damaged,
            num_padded=int(padded),
            num_quarantined=lost,
        )

    def _as_read(self, group: EncodedGroup, step: int) -> EncodedGroup:
        """The group with its responses in the order of this step, where they are read in turn."""
        if not group.in_turn:
            return group
        draw = () if self._seed is None else (self._seed, step, group.key)
        return in_order(group, drawn_order(group, *draw))

    def _within_budget(self, groups: list[EncodedGroup]) -> list[list[EncodedGroup]]:
        """Cut groups up where they hold more tokens than the budget; a single group stays whole."""
        tokens = [group.num_tokens for group in groups]
        if sum(tokens) <= self._token_budget:
            return [groups]
        parts = micro_batches(tokens, token_budget=self._token_budget, world_size=1)
        return [[groups[i] for i in members] for members in parts]

    def _load(self, row: int, weight: float, damaged: dict[str, str]) -> EncodedGroup:
        """Load a row, or the next row that can be loaded at weight 0."""
        reason: DataError | None = None
        for _ in range(MAX_DAMAGED_IN_A_ROW):
            try:
                group = self._dataset.encode(row)
            except MissingRowError:
                raise
            except DataError as error:
                key = self._dataset.index.entries[row].key
                LOG.warning("group %s left out: %s", key, error)
                damaged[key] = reason_of(error)
                row, weight, reason = self._next(row), 0.0, error
            else:
                # Outside of the try: a value that a table lacks is no damage to be passed over.
                return self._dataset.join(replace(group, weight=weight))
        raise DataError(
            f"{MAX_DAMAGED_IN_A_ROW} groups in a row cannot be read",
            where=", ".join([*damaged][-3:]),
            given=str(reason),
            fix="check the shards against their manifest, and pack them again if they are damaged",
        ) from reason

    def _next(self, row: int) -> int:
        return int(self._rows[(np.searchsorted(self._rows, row) + 1) % len(self._rows)])
