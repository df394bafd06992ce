"""Started by torchrun: trains a policy with the stage `mmdpo`, on both ranks of a sharded or a plain strategy.

Usage: two_rank_stage.py STRATEGY LANGUAGE SHARDS POLICY REWARDS REFERENCE OUT (STRATEGY: sharded, ddp, split:
sharded, with estimates of length so low that each rank has to split its own micro-batches; or resumed: sharded, with a
power cut behind the second step).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.sharding import sharded_strategy
from mmrlhf.stages import mmdpo
from mmrlhf.tokens.encode import Encoder
from mmrlhf.training.heldout_answers import AnswerSettings
from mmrlhf.training.settings import Schedule, TrainSettings

# some two of these queries are above it and others are not: in a step, one rank has one micro-batch, the other two
SPLIT_BUDGET = 180


class PowerCut(L.Callback):
    """An end that nothing foresees, in the third step."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 2:
            raise KeyError("power cut")


def resume(out: Path, trainer: Callable[[], partial], language: str, shards: str, policy: str, *tables: str) -> None:
    """Train to a power cut, and go on."""
    with suppress(KeyError):
        train(out, partial(trainer(), callbacks=[PowerCut()]), language, shards, policy, *tables)
    train(out, trainer(), language, shards, policy, *tables)


def train(
    out: Path, trainer: partial, language: str, shards: str, policy: str, rewards: str, reference: str, budget: int = 1
) -> dict:
    return mmdpo.run(
        out,
        shards=Path(shards),
        policy=policy,
        objective=MMDPO(sft_weight=0.1),
        rewards=Path(rewards),
        reference=Path(reference),
        training=TrainSettings(
            # The projector trains, but a rank whose micro-batch has no image does not reach it.
            model=ModelSettings(language=language, projector="full", lora_rank=4),
            optim=OptimSettings(lr=1e-3),
            schedule=Schedule(
                epochs=None, max_steps=3, groups_per_step=4, token_budget=budget, holdout=0.3, checkpoint_every=2
            ),
        ),
        # Before the first step a sharded model has gathered nothing yet.
        answers=AnswerSettings(num_queries=2, max_new_tokens=4),
        runtime=Runtime(trainer=trainer, loggers=lambda *_: [], progress=False),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    name, *arguments, out = sys.argv[1:]

    def two_ranks() -> partial:
        strategy = "ddp" if name == "ddp" else sharded_strategy(devices=2, num_nodes=1, accelerator="cpu")
        return partial(L.Trainer, accelerator="cpu", devices=2, strategy=strategy)

    trainer = two_ranks()
    if name == "resumed":
        resume(Path(out), two_ranks, *arguments)
    elif name == "split":
        Encoder.estimate_tokens = lambda self, entry: 1  # type: ignore[method-assign]
        train(Path(out), trainer, *arguments, budget=SPLIT_BUDGET)
    else:
        train(Path(out), trainer, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
