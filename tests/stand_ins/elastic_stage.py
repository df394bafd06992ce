"""Trains a policy and notes what every step was made of; started by torchrun, or called in one process.

Usage: elastic_stage.py SHARDS POLICY OUT NOTES STOP (STOP: the step after which a signal reaches the last rank).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.processes import TrainingInterrupted
from mmrlhf.stages import sft
from mmrlhf.tensors import StepBatch
from mmrlhf.training.settings import Schedule, TrainSettings

EPOCHS, GROUPS_PER_STEP = 2, 3


class Notes(L.Callback):
    """Writes a line for each step of each rank, and sends the last rank a signal in step `stop`."""

    def __init__(self, folder: Path, stop: int | None) -> None:
        self.folder, self.stop = folder, stop

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: StepBatch, _: int) -> None:
        if batch.step == self.stop and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, _: int) -> None:
        weights = [
            (key, weight)
            for micro in batch.micro_batches
            for key, weight in zip(micro.keys, micro.group_weight.tolist(), strict=True)
            if weight > 0
        ]
        note = {"epoch": batch.epoch, "step": batch.step, "ranks": trainer.world_size, "weights": weights}
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")


def train(out: Path, *, shards: Path, policy: Path, notes: Path, stop: int | None, devices: int = 1) -> dict[str, Any]:
    """Train, or go on with what `out` holds, on so many processes."""
    strategy = "ddp" if devices > 1 else "auto"
    trainer = partial(L.Trainer, accelerator="cpu", devices=devices, strategy=strategy)
    # one group to a micro-batch: how a step is cut is then the same whatever shares it out
    schedule = Schedule(
        epochs=EPOCHS, groups_per_step=GROUPS_PER_STEP, token_budget=1, holdout=0.3, checkpoint_every=None
    )  # fmt: skip
    notes.mkdir(parents=True, exist_ok=True)
    return sft.run(
        out,
        shards=shards,
        policy=policy,
        training=TrainSettings(optim=OptimSettings(lr=1e-3), schedule=schedule),
        runtime=Runtime(trainer=trainer, loggers=lambda *_: [], progress=False, callbacks=[Notes(notes, stop)]),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    shards, policy, out, notes = map(Path, sys.argv[1:5])
    try:
        train(out, shards=shards, policy=policy, notes=notes, stop=int(sys.argv[5]), devices=2)
    except TrainingInterrupted as stopped:
        print(f"interrupted: {stopped}", flush=True)  # in one piece: two processes share the screen
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
