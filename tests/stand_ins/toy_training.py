"""A module whose batch is one optimizer step, and a trainer for it, for the tests of callbacks."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor


class Toy(L.LightningModule):
    """Pulls one weight towards each batch's value; remembers which batches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Take one step."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = (self.weight - batch.float().mean()) ** 2
        self.manual_backward(loss)
        optimizer.step()
        self.seen.append(float(batch.mean()))
        self.log_dict({"train/loss": loss.detach(), "train/value": batch.float().mean()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Momentum, so that a resume without the optimizer's state would differ."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Numbers(L.LightningDataModule):
    """The numbers 0 .. n-1, one per step, continued at the trainer's step after a resume."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps, self.first = num_steps, 0

    def state_dict(self) -> dict[str, Any]:
        """The next step."""
        assert self.trainer is not None
        return {"step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue there."""
        self.first = state_dict["step"]

    def train_dataloader(self) -> Steps:
        """One pass is the whole run."""
        return Steps(self)


class Steps:
    """A loader with a length, whose iteration starts where the datamodule says."""

    def __init__(self, data: Numbers) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.num_steps

    def __iter__(self):
        for step in range(self.data.first, self.data.num_steps):
            yield torch.tensor([float(step)])

    def state_dict(self) -> dict[str, Any]:
        """Tell Lightning that this loader knows where it is."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""


def build_trainer(callbacks: list[L.Callback], logger: Any = False, **settings: Any) -> L.Trainer:
    """A quiet trainer on one CPU."""
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    defaults = {
        "enable_checkpointing": saves,
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
    }
    return L.Trainer(
        logger=logger, callbacks=callbacks, enable_model_summary=False, enable_progress_bar=False,
        num_sanity_val_steps=0, **{**defaults, **settings},
    )  # fmt: skip
