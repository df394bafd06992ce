"""What stages share: how training stages train, how models are only asked, how critiques are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrlhf.errors import ConfigError
from mmrlhf.feed.selection import Queries, Selection
from mmrlhf.feed.weights import Mixing
from mmrlhf.files import expanded
from mmrlhf.methods.optim import OptimSettings, require_whole_parameters
from mmrlhf.models.settings import PARTS, ModelSettings, require_shardable
from mmrlhf.models.storage import check_storage
from mmrlhf.models.weight_files import is_adapter_folder
from mmrlhf.ranges import Count, Natural, Positive, ShareBelowOne, check_fields
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

    epochs: Positive | None = 1.0
    max_steps: Count | None = None
    groups_per_step: Count = 32
    token_budget: Count = 16384
    holdout: ShareBelowOne = 0.05
    selection: Selection = field(default_factory=Selection)
    mixing: Mixing = field(default_factory=Mixing)
    limit: Count | None = None
    val_limit: Natural | None = 512
    val_every: Count | None = None
    checkpoint_every: Count | None = 200
    keep_checkpoints: Count = 2
    seed: Natural = 0

    @property
    def queries(self) -> Queries:
        """Which queries are trained on, and which validate."""
        return Queries(self.holdout, self.selection, self.limit, self.val_limit)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs is None and self.max_steps is None:
            raise ConfigError(
                "a schedule has neither epochs nor max_steps", argument="epochs", expected="one of them, or both"
            )


@dataclass(frozen=True)
class TrainSettings:
    """How a training stage trains, whatever its method.

    Args:
        model: which parts train, and how the model runs.
        media: how videos become frames.
        optim: the optimizer.
        schedule: length of the run.
        save: what is written: the `merged` model, or the `adapter` alone, which needs its base to be there; `both`
            writes the adapter into the folder `adapter` beside the model.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    media: MediaSettings = field(default_factory=MediaSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: Schedule = field(default_factory=Schedule)
    save: Literal["merged", "adapter", "both"] = "merged"

    def __post_init__(self) -> None:
        check_fields(self)


def require_storable(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where weights cannot be stored as `model.settings.weights` and `model.save` say.

    See `check_storage` and `require_plain_base`.
    """
    training: TrainSettings = settings.get("training") or TrainSettings()
    check_storage(training.model)
    if settings.get("policy") is not None:
        require_plain_base(settings["policy"], training)
    modes = {part: getattr(training.model, part) for part in PARTS}
    if training.save != "merged" and ("lora" not in modes.values() or "full" in modes.values()):
        raise ConfigError(
            "an adapter folder holds adapters and nothing else, and here something else trains, or no adapter does",
            where="model.save",
            given=", ".join([f"save={training.save}", *(f"{part}={mode}" for part, mode in modes.items())]),
            expected="lora or frozen for every part, and lora for one at least",
            fix="model.settings.projector=frozen model.settings.language=lora, or model.save=merged",
        )


def require_plain_base(policy: str | Path, training: TrainSettings) -> None:
    """Raise ConfigError where adapters would be written whose base is a folder of adapters: peft loads no such chain.

    Asked before the chain starts, and again by a stage whose base another stage has made.
    """
    if training.save != "merged" and is_adapter_folder(expanded(policy)):
        raise ConfigError(
            "adapters are written for a whole model, and training here goes on from a folder of adapters",
            where="model.save",
            given=f"save={training.save}, {policy}",
            expected="save=merged, or the merged model of the training that wrote this folder",
            fix="model.save=merged for this training, or model.save=both for the one before and its folder model/",
        )


def require_splittable(training: TrainSettings) -> None:
    """Raise ConfigError where models that are split over devices cannot be trained as these settings say."""
    require_whole_parameters(training.optim)
    require_shardable(training.model.layout)


def require_back_end(training: TrainSettings, *, device: str) -> None:
    """Raise ConfigError where `model.settings.attention` cannot train on a kind of device."""
    if training.model.needs_plain_layers:
        from mmrlhf.models import attention  # takes a second, and few ask for these

        attention.require_trainable(training.model.attention, device)


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
