"""How training stages train: resume, curves, export, summary; and whether the tables they read are the right ones."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from torch import Tensor

from mmrlhf.callbacks.checkpoints import StepCheckpoint, latest_checkpoint
from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.callbacks.histograms import PairHistograms
from mmrlhf.callbacks.ledger import EpochLedger
from mmrlhf.callbacks.preemption import Preemption
from mmrlhf.callbacks.quarantined_groups import QuarantinedGroups
from mmrlhf.callbacks.training_progress import TrainingProgress
from mmrlhf.chain.runtime import Runtime
from mmrlhf.chain.store import SCRATCH
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.made_by import describe_source, describe_template, describe_weights
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.models.load import checkpoint_context
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.sharding import gather_state, is_sharded
from mmrlhf.processes import TrainingInterrupted
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.rankings import Accuracy
from mmrlhf.summaries.trainings import Epoch, TrainingData, TrainingSummary
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import Template
from mmrlhf.training.workbench import Workbench

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECKPOINTS, MODEL = SCRATCH, "model"


def check_table(table: SideCar, wanted: Mapping[str, Any], *, name: str, stage: str) -> None:
    """Compare a side-car's fingerprint with what this run uses.

    Raises:
        DataError: they differ; names what differs.
    """
    for fact, expected in wanted.items():
        found = table.fingerprint.get(fact)
        if found is not None and json.loads(json.dumps(expected)) != found:
            raise DataError(
                f"the table of {name} was made with another {fact}",
                where=table.folder,
                given=found,
                expected=f"{expected}, which this run uses",
                fix=f"let the stage `{stage}` make it again (input `stage:{stage}/...`), or use what it was made with",
            )


def table_facts(
    index: Index, *, policy: Path | str, template: Template, media: MediaSettings, model: ModelSettings
) -> dict[str, Any]:
    """What a reference table's fingerprint must say to fit a run."""
    return {
        "max_tokens": checkpoint_context(policy, model),
        "precision": model.precision,
        "weights": describe_weights(model),
        "shards": index.digest,
        "policy": describe_source(policy),
        "template": describe_template(template),
        "media": asdict(media),
    }


def train(
    module: PackedModule, bench: Workbench, *, out: Path, stage: str, runtime: Runtime
) -> tuple[L.Trainer, TrainingSummary]:
    """Fit from the newest checkpoint in `out/checkpoints`, validate, and summarise.

    Raises:
        TrainingInterrupted: stopped by a signal, after saving. ConfigError: fewer steps than planned.
    """
    module.stage = stage
    preemption = Preemption()
    trainer = _make_trainer(bench, out, stage, runtime, preemption)
    resume = latest_checkpoint(out / CHECKPOINTS)
    if resume is not None:
        log.info("%s goes on from %s", stage, resume)
    first = _step_of(resume)
    with preemption:
        seconds = _fit(trainer, module, bench, resume)
        if preemption.agreed(trainer):
            problem = f"stopped by {preemption.cause} behind the last step; run it again to continue"
            raise TrainingInterrupted(problem, preemption.received)
    _check_steps(trainer.global_step, bench.data.total_steps, stage, out)
    cuts = module.cuts()
    summary = TrainingSummary(
        steps=trainer.global_step,
        groups_per_step=bench.schedule.groups_per_step,
        seconds=round(seconds, 2),
        groups_per_second=round((trainer.global_step - first) * bench.schedule.groups_per_step / seconds, 3),
        train=dict(module.train_metrics),
        validation=dict(module.validation_metrics),
        heldout=heldout_report(module, bench.categories),
        truncated_tokens=cuts["truncated_tokens"],
        equal_pairs=cuts["equal_pairs"],
        quarantined=bench.quarantine.summary(),
        data=TrainingData(
            **bench.data.describe(),
            excluded=dict(bench.excluded),
            epochs=[Epoch(**row) for row in _callback(trainer, EpochLedger).epochs],
        ),
    )
    return trainer, summary


def _check_steps(made: int, planned: int, stage: str, out: Path) -> None:
    """Raise ConfigError where something has ended training early: its model is not what the settings describe."""
    if made < planned:
        raise ConfigError(
            f"training of {stage} ended before its plan did, so nothing is published",
            where=out,
            given=f"{made} optimizer steps",
            expected=f"{planned}",
            fix="leave out what ended it (a callback?) and run the same command: it goes on from the last checkpoint; "
            "a shorter training is scale.max_steps=N",
        )


def _fit(trainer: L.Trainer, module: PackedModule, bench: Workbench, resume: Path | None) -> float:
    """Train and validate; returns the seconds that training took."""
    started = time.monotonic()
    # Lightning leaves modes as they are: a loaded checkpoint is in evaluation mode, without dropout and checkpointing.
    module.train()
    with warnings.catch_warnings():
        # A frozen vision tower stays in evaluation mode, by intention.
        warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
        trainer.fit(module, datamodule=bench.data, ckpt_path=resume)
    seconds = max(time.monotonic() - started, 1e-9)
    if bench.validates and module.validated_step != trainer.global_step:
        trainer.validate(module, datamodule=bench.data, verbose=False)
    return seconds


def _make_trainer(bench: Workbench, out: Path, stage: str, runtime: Runtime, preemption: Preemption) -> L.Trainer:
    schedule = bench.schedule
    steps = bench.data.total_steps
    callbacks = [
        preemption,  # first, so that it has the signals while the others start
        TrainingProgress(stage, enabled=runtime.progress),
        StepCheckpoint(
            out / CHECKPOINTS, preemption, every_steps=schedule.checkpoint_every, keep=schedule.keep_checkpoints
        ),
        QuarantinedGroups(bench.quarantine),
        EpochLedger(steps_per_epoch=bench.data.steps_per_epoch, groups_per_step=schedule.groups_per_step),
        PairHistograms(out),
        *runtime.callbacks,
    ]
    return runtime.trainer(
        max_epochs=1,
        logger=[CurveLogger(out, name=stage), *runtime.loggers(out, stage)],
        callbacks=callbacks,
        precision="bf16-mixed" if bench.precision == "bf16" else "32-true",
        default_root_dir=out,
        log_every_n_steps=1,
        # FSDP2 keeps gathered parameters from validation for training, which inference tensors would not survive.
        inference_mode=False,
        val_check_interval=min(schedule.val_every or steps, steps),
        limit_val_batches=1.0 if bench.validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )


def _callback(trainer: L.Trainer, kind: type[T]) -> T:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, kind))


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.stem.removeprefix("step-"))


def heldout_report(module: PackedModule, categories: Mapping[str, str]) -> Accuracy | None:
    """Pair accuracy on held-out queries with intervals over queries; None for methods without pairs."""
    scores = module.heldout_scores
    if scores is None:
        return None
    names = [categories.get(key, "unknown") for key in scores.keys]
    found = accuracy_report(scores.keys, scores.chosen, scores.rejected, names)
    return Accuracy.from_json(found, where="accuracy_report")


def full_state(module: PackedModule) -> dict[str, Tensor] | None:
    """The unsharded state dict of a sharded model (every rank calls this), or None for a plain one."""
    return gather_state(module.model) if is_sharded(module.model) else None


def finish(
    trainer: L.Trainer, module: PackedModule, out: Path, summary: TrainingSummary, save: Callable[[Any], None]
) -> dict[str, Any]:
    """Export the trained model and write the summary, on rank 0; every rank calls this and waits for it.

    The checkpoints stay until the stage's folder has its final name: with the last one, an end that was cut off is
    made again without training.
    """
    state = full_state(module)
    if trainer.is_global_zero:
        save(state)
        summary.write(out)
    trainer.strategy.barrier("after export")
    return summary.to_json()


def need_path(path: Path | str | None, *, what: str, where: str, stage: str) -> Path:
    """Require an input that the settings make necessary.

    Raises:
        ConfigError: it is None.
    """
    if path is None:
        raise ConfigError(
            f"this run needs {what}",
            where=where,
            given=None,
            expected=f"the folder that the stage `{stage}` writes",
            fix=f"set {where} to `stage:{stage}/...` or to a folder of your own",
        )
    return Path(path)
