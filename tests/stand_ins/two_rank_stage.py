"""Started by torchrun: trains a policy with the stage `mmdpo`, on all ranks of a sharded or a plain strategy.

Usage: two_rank_stage.py STRATEGY LANGUAGE SHARDS POLICY REWARDS REFERENCE OUT. LANGUAGE: how it trains; `qlora`: by
adapters on 4 bits. STRATEGY: ddp; sharded; split: sharded, with estimates of length so low that each rank has to split
its own micro-batches; offloaded: sharded, on the host; hybrid: sharded over the ranks of a machine, the frozen tower,
too; cut: sharded, with a power cut behind the second step; or resumed: the same, and what comes after it.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.sharded_checkpoints import TrainedShards
from mmrlhf.models.sharding import Sharding, sharded_strategy
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


def train_to_a_power_cut(out: Path, trainer: partial, *arguments: str) -> None:
    """Train two of the three steps."""
    with suppress(KeyError):
        train(out, trainer, *arguments, callbacks=[PowerCut()])
        raise AssertionError("no power cut")


def train(
    out: Path,
    trainer: partial,
    language: str,
    shards: str,
    policy: str,
    rewards: str,
    reference: str,
    budget: int = 1,
    callbacks: Sequence[L.Callback] = (),
) -> dict:
    on_bits = {"language": "lora", "projector": "frozen", "weights": "nf4"}
    # The projector trains, but a rank whose micro-batch has no image does not reach it.
    settings = on_bits if language == "qlora" else {"language": language, "projector": "full"}
    return mmdpo.run(
        out,
        shards=Path(shards),
        policy=policy,
        objective=MMDPO(sft_weight=0.1),
        rewards=Path(rewards),
        reference=None if language == "qlora" else Path(reference),
        reference_from="adapter" if language == "qlora" else "table",
        training=TrainSettings(
            model=ModelSettings(lora_rank=4, **settings),
            optim=OptimSettings(lr=1e-3),
            schedule=Schedule(
                epochs=None, max_steps=3, groups_per_step=4, token_budget=budget, holdout=0.3, checkpoint_every=2
            ),
        ),
        # Before the first step a sharded model has gathered nothing yet.
        answers=AnswerSettings(num_queries=2, max_new_tokens=4),
        runtime=Runtime(trainer=trainer, loggers=lambda *_: [], callbacks=callbacks, progress=False),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    name, *arguments, out = sys.argv[1:]

    def all_ranks() -> partial:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        size = int(os.environ["WORLD_SIZE"])
        strategies = {
            "ddp": "ddp",
            "hybrid": TrainedShards(size, Sharding(shard_size=local, large_tower=1)),
            "offloaded": TrainedShards(size, Sharding(cpu_offload=True)),
        }
        sharded = sharded_strategy(devices=local, num_nodes=size // local, accelerator="cpu")
        machine = {"accelerator": "cpu", "devices": local, "num_nodes": size // local}
        return partial(L.Trainer, **machine, strategy=strategies.get(name, sharded))

    if name in ("cut", "resumed"):
        train_to_a_power_cut(Path(out), all_ranks(), *arguments)
    if name == "split":
        Encoder.estimate_tokens = lambda self, entry: 1  # type: ignore[method-assign]
        train(Path(out), all_ranks(), *arguments, budget=SPLIT_BUDGET)
    elif name != "cut":
        train(Path(out), all_ranks(), *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
