"""What a run may say about Lightning's Trainer and its callbacks, because it changes no result.

A stage decides itself how long, on what and how precisely it trains, by settings that are in its fingerprint. The
machine is the Trainer's: only such settings are let through. Callbacks are let through where they are known to look on
only; others are part of what determines a trained model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmrlhf.chain.order import suggestion
from mmrlhf.errors import ConfigError
from mmrlhf.processes import check_shard_size, count_devices

if TYPE_CHECKING:
    from lightning import Trainer

# the machine, and how it is watched
ALLOWED = (
    "_target_", "_partial_", "_recursive_", "_convert_", "accelerator", "devices", "num_nodes", "strategy",
    "benchmark", "deterministic", "detect_anomaly", "profiler", "barebones", "enable_autolog_hparams", "model_registry",
)  # fmt: skip
# of `trainer=fsdp`; its strategy reads them, and Lightning's Trainer has no such parameters
SHARDING = ("shard_size", "cpu_offload")
TRAINERS = ("lightning.Trainer", "lightning.pytorch.Trainer", "lightning.pytorch.trainer.Trainer")
_SMALLER = "scale.max_steps=N for a short run, scale=tiny for a trial of the whole chain"
_VALIDATION = "optim.val_every=N (optimizer steps), scale.validate=N (held-out queries at most)"
# what to use in place of a setting of Lightning's
INSTEAD = {
    "fast_dev_run": _SMALLER,
    "max_steps": "scale.max_steps=N",
    "min_steps": "optim.epochs.STAGE",
    "max_epochs": "optim.epochs.STAGE=N",
    "min_epochs": "optim.epochs.STAGE=N",
    "max_time": "scale.max_steps=N; or stop it with Ctrl-C or SIGTERM: the same command continues",
    "limit_train_batches": "scale.max_steps=N, or data.selection",
    "overfit_batches": "scale.num_groups=N, or data.selection",
    "limit_val_batches": _VALIDATION,
    "val_check_interval": _VALIDATION,
    "check_val_every_n_epoch": _VALIDATION,
    "accumulate_grad_batches": "optim.groups_per_step.STAGE=N queries of a step; model.token_budget=N of a forward",
    "gradient_clip_val": "optim.STAGE.max_grad_norm=X",
    "gradient_clip_algorithm": "optim.STAGE.max_grad_norm=X",
    "precision": "model.settings.precision=bf16 or float32",
    "plugins": "model.settings.precision for precision",
    "logger": "logger=wandb, tensorboard, csv or none",
    "callbacks": "+callbacks.NAME={_target_: ...}",
    "enable_progress_bar": "runtime.progress=false",
    "enable_checkpointing": "optim.checkpoint_every=N",
    "default_root_dir": "paths.artifacts=DIR",
    "log_every_n_steps": "every step is logged, into curves.csv",
}
# Lightning's that look on only
HARMLESS = {
    "Callback", "DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "RichModelSummary", "ThroughputMonitor",
    "TQDMProgressBar", "RichProgressBar", "ProgressBar", "OnExceptionCheckpoint",
}  # fmt: skip
# Lightning's that end training, or change its steps, behind the plan's back
REFUSED = {
    "EarlyStopping": "scale.max_steps=N or optim.epochs.STAGE=N: how long a stage trains is part of what it is",
    "Timer": INSTEAD["max_time"],
    "GradientAccumulationScheduler": INSTEAD["accumulate_grad_batches"],
    "BatchSizeFinder": "model.token_budget=N; plan=true says what fits",
    "LearningRateFinder": "sweep=learning_rate",
    "SpikeDetection": "data.selection leaves queries out",
}
_OWN = "mmrlhf.callbacks."


def check_trainer(runtime: Mapping[str, Any]) -> None:
    """Refuse what would change results without being part of the fingerprint, or would be ignored (ConfigError)."""
    trainer = runtime.get("trainer") or {}
    target = trainer.get("_target_", TRAINERS[0])
    if target not in TRAINERS:
        raise ConfigError(
            "stages train with Lightning's own Trainer", where="trainer._target_", given=target, expected=TRAINERS[0]
        )
    _check_sharding(trainer)
    for key, value in trainer.items():
        if key not in (*ALLOWED, *SHARDING):
            known = INSTEAD.get(key)
            raise ConfigError(
                f"the trainer does not take `{key}` here: it would change results, or be overruled by the stage",
                where=f"trainer.{key}",
                given=value,
                expected="one of " + ", ".join(name for name in ALLOWED if not name.startswith("_")),
                fix=f"use {known}" if known else suggestion(key, ALLOWED),
            )
    for callback in runtime.get("callbacks") or ():
        library, name = _split(callback)
        if library == "lightning" and name in REFUSED:
            raise ConfigError(
                f"the callback {name} changes how long or in which steps a stage trains",
                where="callbacks", given=callback["_target_"], fix=f"use {REFUSED[name]}",
            )  # fmt: skip


def _check_sharding(trainer: Mapping[str, Any]) -> None:
    """Refuse what only sharded models have, and groups of devices that share one but do not come out even."""
    given = {key: trainer[key] for key in SHARDING if trainer.get(key)}
    if given and not isinstance(trainer.get("strategy"), Mapping):
        raise ConfigError(
            "only a model that is split over devices takes this",
            where=", ".join(f"trainer.{key}" for key in given),
            given=", ".join(f"{key}={value}" for key, value in given.items()),
            expected="trainer=fsdp",
        )
    if trainer.get("shard_size") is not None:
        devices = count_devices(trainer.get("devices", 1), str(trainer.get("accelerator", "auto")))
        check_shard_size(trainer["shard_size"], devices * int(trainer.get("num_nodes", 1)))


def decisive_callbacks(runtime: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Settings of the callbacks that determine what a training stage makes: all but those known to look on only.

    Ours look on, and so does a class that says `changes_result = False`.
    """
    return [callback for callback in runtime.get("callbacks") or () if not _looks_on(callback)]


def new_trainer(**settings: Any) -> Trainer:
    """Make Lightning's Trainer: the command's settings of the machine, and a stage's of its training."""
    from lightning import Trainer

    return Trainer(**{key: value for key, value in settings.items() if key not in SHARDING})


def _looks_on(callback: Any) -> bool:
    library, name = _split(callback)
    target = str(callback.get("_target_", "")) if isinstance(callback, Mapping) else ""
    if target.startswith(_OWN) or (library == "lightning" and name in HARMLESS):
        return True
    module, _, member = target.rpartition(".")
    try:
        return getattr(getattr(importlib.import_module(module), member), "changes_result", True) is False
    except (ImportError, AttributeError, ValueError):
        return False  # making it says what is wrong


def _split(callback: Any) -> tuple[str, str]:
    names: Sequence[str] = str(callback.get("_target_", "")).split(".") if isinstance(callback, Mapping) else [""]
    library = "lightning" if names[0] in ("lightning", "pytorch_lightning") else names[0]
    return library, names[-1]
