"""What stages share: how training stages train, how models are only asked, how critiques are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrlhf.errors import ConfigError
from mmrlhf.feed.selection import Selection
from mmrlhf.feed.weights import Mixing
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.load import PARTS, ModelSettings
from mmrlhf.tokens.processing import MediaSettings


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains, on what share of the data, and in which portions.

    Args:
        epochs: passes over the training queries (a part of one is allowed).
        max_steps: optimizer steps at most; cuts epochs short, or replaces them where those are None.
        groups_per_step: queries of one optimizer step, over all devices.
        token_budget: tokens of one packed micro-batch; changes speed and memory, not the result.
        holdout: share of queries that are never trained on.
        selection: which queries are used.
        mixing: how often an epoch sees which of them.
        limit: at most this many training queries.
        val_limit: at most this many held-out ones for validation.
        val_every: optimizer steps between validations; None: only at the end.
        checkpoint_every: optimizer steps between checkpoints; None: only at the end and on a signal.
        keep_checkpoints: how many of the newest are kept.
        seed: order of the data, fresh parameters and dropout follow from it.
    """

    epochs: float | None = 1.0
    max_steps: int | None = None
    groups_per_step: int = 32
    token_budget: int = 16384
    holdout: float = 0.05
    selection: Selection = field(default_factory=Selection)
    mixing: Mixing = field(default_factory=Mixing)
    limit: int | None = None
    val_limit: int | None = 512
    val_every: int | None = None
    checkpoint_every: int | None = 200
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("max_steps", "groups_per_step", "token_budget", "limit", "val_every", "checkpoint_every",
                  "keep_checkpoints")  # fmt: skip
        wrong = [f"{name}={value}" for name in counts if (value := getattr(self, name)) is not None and value < 1]
        if self.epochs is not None and self.epochs <= 0:
            wrong.append(f"epochs={self.epochs}")
        if not 0 <= self.holdout < 1:
            wrong.append(f"holdout={self.holdout}")
        if self.epochs is None and self.max_steps is None:
            wrong.append("neither epochs nor max_steps")
        if wrong:
            raise ConfigError(
                "a schedule cannot be met",
                where="optim, scale, data.holdout, model.token_budget",
                given=", ".join(wrong),
                expected="counts of 1 or more, epochs above 0, 0 <= holdout < 1, and epochs or max_steps",
            )


@dataclass(frozen=True)
class TrainSettings:
    """How a training stage trains, whatever its method.

    Args:
        model: which parts train, and how the model runs.
        media: how videos become frames.
        optim: the optimizer.
        schedule: length of the run.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    media: MediaSettings = field(default_factory=MediaSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: Schedule = field(default_factory=Schedule)


def require_trainable(settings: Mapping[str, Any], stage: str) -> None:
    """Raise ConfigError where all parts of the model are frozen in a stage that trains nothing beside it."""
    training: TrainSettings = settings.get("training") or TrainSettings()
    modes = {part: getattr(training.model, part) for part in PARTS}
    if set(modes.values()) == {"frozen"}:
        raise ConfigError(
            "all parts of the model are frozen, so nothing would train",
            where=", ".join(f"model.settings.{part}" for part in PARTS),
            given=f"frozen, in stage {stage}",
            expected="full or lora for at least one of them",
        )
