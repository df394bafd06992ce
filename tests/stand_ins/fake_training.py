"""A stage that trains for real, with a Lightning Trainer on every process, for tests of launching and continuing it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from stand_ins.fake_stages import count
from stand_ins.toy_training import Numbers, Toy
from typing_extensions import override

from mmrlhf.callbacks.checkpoints import StepCheckpoint, latest_checkpoint
from mmrlhf.callbacks.preemption import Preemption


class Signalled(Callback):
    """Sends this process what submitit sends, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGUSR2)


def fit(
    out: Path, *, data: Path, policy: str | Path = "hub/model", rate: float = 0.1, preempted: int = 0, runtime: Any
) -> dict[str, Any]:
    """Train five steps; `preempted`: the step in which the first try is told to stop."""
    module, numbers = Toy(), Numbers(5)
    found = latest_checkpoint(out / "checkpoints")
    preemption = Preemption()
    callbacks: list[Callback] = [preemption, StepCheckpoint(out / "checkpoints", preemption)]
    if preempted and found is None:
        callbacks.append(Signalled(preempted))
    trainer = runtime.trainer(
        max_epochs=1, callbacks=callbacks, logger=False, enable_model_summary=False, enable_progress_bar=False
    )
    if trainer.is_global_zero:
        count(out)
    with preemption:
        trainer.fit(module, numbers, ckpt_path=found, weights_only=False)
    ranks = trainer.strategy.reduce(torch.tensor(2.0**trainer.global_rank), reduce_op="sum")
    return {"rate": rate, "world": trainer.world_size, "ranks": float(ranks), "first": numbers.first}
