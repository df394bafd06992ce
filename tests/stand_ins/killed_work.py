"""What the processes of test_random_kills.py do: one stage each, small enough to be done in a second or two."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference import tables
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.records.mm_rlhf import import_released
from mmrlhf.stages import pack, score, sft
from mmrlhf.training.settings import Schedule, TrainSettings

EPOCHS, GROUPS_PER_STEP = 3, 4


def quiet(num_workers: int = 0) -> Runtime:
    """A runtime for a process that nobody watches."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    trainer = partial(L.Trainer, accelerator="cpu", devices=1)
    return Runtime(trainer=trainer, loggers=lambda *_: [], num_workers=num_workers, progress=False)


def run_pack(out: Path, raw: Path, num_workers: int) -> None:
    """Pack records, three to a shard, with processes that decode."""
    pack.run(out, root=raw, importer=import_released, max_groups_per_shard=3, runtime=quiet(num_workers))


def run_training(out: Path, shards: Path, policy: Path) -> None:
    """Train a policy and save after every step."""
    schedule = Schedule(
        epochs=EPOCHS, groups_per_step=GROUPS_PER_STEP, token_budget=600, holdout=0.3, checkpoint_every=1
    )  # fmt: skip
    training = TrainSettings(optim=OptimSettings(lr=1e-3), schedule=schedule)
    sft.run(out, shards=shards, policy=policy, training=training, runtime=quiet())


def run_scoring(out: Path, shards: Path, reward_model: Path) -> None:
    """Score every query and write a part for each."""
    tables.SECONDS_BETWEEN_WRITES = -1.0
    passes, critiques = PassSettings(groups_per_batch=1), CritiqueSettings(max_tokens=12)
    score.run(
        out, shards=shards, reward_model=reward_model, passes=passes, critiques=critiques, holdout=0.3,
        runtime=quiet(),
    )  # fmt: skip
