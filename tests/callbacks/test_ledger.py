"""Delivered + padded + quarantined = places, for any number of ranks, with damage, and across a restart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.fake_groups import make_dataset

from mmrlhf.callbacks.ledger import EpochLedger
from mmrlhf.feed.steps import RunPlan, TrainSteps


class Ranks:
    """Stands for the trainers of several ranks whose ledgers are asked in turn; rank 0 is asked last."""

    def __init__(self, size: int) -> None:
        self.sent: list[torch.Tensor] = []
        self.trainers: list[Any] = [
            SimpleNamespace(
                is_global_zero=rank == 0,
                strategy=SimpleNamespace(root_device="cpu", reduce=self._reduce if rank == 0 else self._send),
            )
            for rank in range(size)
        ]

    def _send(self, counts: torch.Tensor, reduce_op: str) -> torch.Tensor:
        self.sent.append(counts)
        return torch.stack(self.sent).sum(0)

    def _reduce(self, counts: torch.Tensor, reduce_op: str) -> torch.Tensor:
        total = torch.stack([*self.sent, counts]).sum(0)
        self.sent = []
        return total


def close_quietly(ledger: EpochLedger) -> None:
    """Let a rank that cannot see the others' counts pass the comparison, which rank 0 makes for all."""
    ledger._close = lambda epoch, counts: setattr(ledger, "_counts", [0, 0, 0])  # type: ignore[method-assign]


@given(
    groups=st.integers(1, 14), per_step=st.integers(1, 5), size=st.integers(1, 3), budget=st.integers(4, 40),
    damaged=st.sets(st.integers(0, 13), max_size=3), cut=st.integers(1, 8),
)  # fmt: skip
def test_the_three_add_up(groups, per_step, size, budget, damaged, cut) -> None:
    keys = frozenset(f"g{number}" for number in damaged if number < groups)
    if len(keys) == groups:
        return  # nothing is left to stand in
    plan = RunPlan(np.arange(groups), "d", 0, per_step)
    steps = -(-groups // per_step)
    ledgers = start(size, steps, per_step)
    for step in range(2 * steps):
        if step == cut:
            # the run is cut off here and goes on with one rank
            saved = save(ledgers, size)
            size, ledgers = 1, start(1, steps, per_step)
            ledgers[0].on_load_checkpoint(Ranks(1).trainers[0], None, saved)  # type: ignore[arg-type]
        ranks = Ranks(size)
        for rank in reversed(range(size)):
            share = TrainSteps(make_dataset(14, damaged=keys), plan, token_budget=budget, rank=rank, world_size=size)
            ledgers[rank].on_train_batch_end(ranks.trainers[rank], None, None, share[step], step)  # type: ignore
    wanted = {"delivered": groups - len(keys), "padded": steps * per_step - groups, "quarantined": len(keys)}
    assert ledgers[0].epochs == [{"epoch": epoch, **wanted} for epoch in range(2)]


def start(size: int, steps: int, per_step: int) -> list[EpochLedger]:
    ledgers = [EpochLedger(steps_per_epoch=steps, groups_per_step=per_step) for _ in range(size)]
    for ledger in ledgers[1:]:
        close_quietly(ledger)
    return ledgers


def save(ledgers: list[EpochLedger], size: int) -> dict[str, Any]:
    ranks, checkpoint = Ranks(size), {}
    for rank in reversed(range(size)):
        ledgers[rank].on_save_checkpoint(ranks.trainers[rank], None, checkpoint)  # type: ignore[arg-type]
    return checkpoint


def test_a_place_that_is_lost_stops_the_run() -> None:
    ledger = EpochLedger(steps_per_epoch=1, groups_per_step=5)
    plan = RunPlan(np.arange(4), "d", 0, 4)
    step = TrainSteps(make_dataset(4), plan, token_budget=99, rank=0, world_size=1)[0]
    trainer = Ranks(1).trainers[0]
    with pytest.raises(RuntimeError, match="4 delivered . 0 padded . 0 quarantined is not the plan's 5"):
        ledger.on_train_batch_end(trainer, L.LightningModule(), None, step, 0)
