"""A short schedule on the small shards, with what tests compare of its result."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mmrlhf.methods.optim import OptimSettings
from mmrlhf.training.settings import Schedule, TrainSettings

SCHEDULE = Schedule(
    epochs=None, max_steps=3, groups_per_step=4, token_budget=600, holdout=0.3, val_every=2, checkpoint_every=1
)
TRAINING = TrainSettings(optim=OptimSettings(lr=1e-3), schedule=SCHEDULE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
