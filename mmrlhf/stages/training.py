"""What the training stages share: data, trainer, resume, curves, export, and the summary of a run."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from mmrlhf.callbacks.checkpoints import StepCheckpoint, latest_checkpoint
from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.callbacks.histograms import PairHistograms
from mmrlhf.callbacks.ledger import EpochLedger
from mmrlhf.callbacks.progress import TrainingProgress
from mmrlhf.data.encode import Encoder
from mmrlhf.data.index import Index
from mmrlhf.data.module import GroupDataset, PreferenceDataModule
from mmrlhf.data.processing import MediaSettings
from mmrlhf.data.selection import select
from mmrlhf.data.sidecar import SideCar
from mmrlhf.data.templates import Template
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.media.damage import Damage
from mmrlhf.methods.base import PackedModule
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.sharding import gather_state, is_sharded
from mmrlhf.stages.layout import settle
from mmrlhf.stages.passes import describe_source, describe_template
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.settings import Schedule, TrainSettings
from mmrlhf.stages.vision_cache import keep_features
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.json"


@dataclass
class Workbench:
    """A model with its encoder and data, ready for a method."""

    model: PackedModel
    encoder: Encoder
    index: Index
    data: PreferenceDataModule
    schedule: Schedule
    precision: Any
    categories: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def processor(self) -> Any:
        """The model's own processor."""
        return self.encoder.processor

    @property
    def validates(self) -> bool:
        """Whether any query is held out."""
        return bool(self.categories)


def open_workbench(
    shards: Path,
    policy: Path | str,
    template: Template,
    training: TrainSettings,
    *,
    tables: Sequence[SideCar] = (),
    damage: Damage | None = None,
    prepare: Callable[[PreferenceGroup], PreferenceGroup] | None = None,
    make_head: Callable[[int], torch.nn.Module] | None = None,
    dimensions: Sequence[str] = (),
    needs_pairs: bool,
    runtime: Runtime,
) -> Workbench:
    """Load shards and model and build the data module.

    Args:
        tables: side-cars whose columns join each query.
        damage: groups also hold damaged copies of their media.
        prepare: changes a query before it is encoded.
        make_head: width of the hidden state -> score head, for reward models; dimensions: annotated scores to read.
        needs_pairs: whether a data set without two responses of different rank is an error.

    Raises:
        DataError: nothing to train on.
        ModelError, HubError: the checkpoint cannot be used.
    """
    model, schedule = training.model, training.schedule
    L.seed_everything(schedule.seed, verbose=False)
    index = Index.load(shards)
    share = {"holdout": schedule.holdout, "selection": schedule.selection}
    chosen = select(index, "train", limit=schedule.limit, **share)
    train, heldout = chosen.rows, select(index, "heldout", limit=schedule.val_limit, **share).rows
    _check_trainable(index, train, shards, schedule, needs_pairs)
    backbone, processor = load_backbone(policy, model)
    head = make_head(backbone.config.get_text_config().hidden_size) if make_head is not None else None
    encoder = Encoder(
        processor,
        template=template,
        positions=positions_for(backbone),
        media=training.media,
        max_tokens=model.max_tokens,
        damage=damage,
        dimensions=dimensions,
    )
    dataset = GroupDataset(index, encoder, tables=tables, prepare=prepare, cache_gib=runtime.cache_gib)
    # What is missing from one record (a critique, a reward) is missing from all: found here, not by the quarantine.
    dataset[int(train[0])]
    dataset.calibrate(train)
    data = _data_module(dataset, train, heldout, schedule, runtime)
    categories = {index.entries[int(row)].key: index.entries[int(row)].category for row in heldout}
    packed = settle(PackedModel(backbone, model, score_head=head), encoder)
    keep_features(packed, index, [*train, *heldout], encoder, runtime)
    return Workbench(packed, encoder, index, data, schedule, model.precision, categories, chosen.excluded)


def _data_module(
    dataset: GroupDataset, train: np.ndarray, heldout: np.ndarray, schedule: Schedule, runtime: Runtime
) -> PreferenceDataModule:
    return PreferenceDataModule(
        dataset,
        train_indices=train,
        val_indices=heldout,
        epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        groups_per_step=schedule.groups_per_step,
        token_budget=schedule.token_budget,
        seed=schedule.seed,
        num_workers=runtime.num_workers,
        mixing=schedule.mixing,
    )


def _check_trainable(index: Index, train: Any, shards: Path, schedule: Schedule, needs_pairs: bool) -> None:
    if len(train) == 0:
        raise DataError(
            "there is nothing to train on",
            where=shards,
            given=f"{len(index)} queries, holdout={schedule.holdout}, limit={schedule.limit}",
            expected="at least one query outside the held-out share",
        )
    if needs_pairs and int(index.column("num_pairs")[train].sum()) == 0:
        raise DataError(
            "no query has two responses of different rank, so there is no pair to learn from",
            where=shards,
            given=f"{len(train)} training queries with 0 pairs",
            expected="ranks that differ, or explicit pairs",
            fix="check the annotations that were packed; supervised training (stage=sft) needs no ranks",
        )


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


def table_facts(index: Index, *, policy: Path | str, template: Template, media: MediaSettings) -> dict[str, Any]:
    """What a reference table's fingerprint must say to fit a run."""
    return {
        "shards": index.digest,
        "policy": describe_source(policy),
        "template": describe_template(template),
        "media": asdict(media),
    }


def train(
    module: PackedModule, bench: Workbench, *, out: Path, stage: str, runtime: Runtime
) -> tuple[L.Trainer, dict[str, Any]]:
    """Fit from the newest checkpoint in `out/checkpoints`, validate, and summarise.

    Raises:
        TrainingInterrupted: stopped by a signal, after saving.
    """
    trainer = _make_trainer(bench, out, stage, runtime)
    resume = latest_checkpoint(out / CHECKPOINTS)
    if resume is not None:
        log.info("%s goes on from %s", stage, resume)
    started, first = time.monotonic(), _step_of(resume)
    # Lightning leaves modes as they are: a loaded checkpoint is in evaluation mode, without dropout and checkpointing.
    module.train()
    with warnings.catch_warnings():
        # A frozen vision tower stays in evaluation mode, by intention.
        warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
        trainer.fit(module, datamodule=bench.data, ckpt_path=resume)
    seconds = max(time.monotonic() - started, 1e-9)
    if bench.validates and module.validated_step != trainer.global_step:
        trainer.validate(module, datamodule=bench.data, verbose=False)
    truncated, quarantined = module.ledger()
    summary: dict[str, Any] = {
        "steps": trainer.global_step,
        "groups_per_step": bench.schedule.groups_per_step,
        "seconds": round(seconds, 2),
        "groups_per_second": round((trainer.global_step - first) * bench.schedule.groups_per_step / seconds, 3),
        "train": dict(module.train_metrics),
        "validation": dict(module.validation_metrics),
        "heldout": heldout_report(module, bench.categories, seed=bench.schedule.seed),
        "truncated_tokens": truncated,
        "quarantined": list(quarantined),
        "data": {**bench.data.describe(), "excluded": dict(bench.excluded), "epochs": _ledger(trainer)},
    }
    return trainer, summary


def _make_trainer(bench: Workbench, out: Path, stage: str, runtime: Runtime) -> L.Trainer:
    schedule = bench.schedule
    steps = bench.data.total_steps
    callbacks = [
        TrainingProgress(stage, enabled=runtime.progress),
        StepCheckpoint(out / CHECKPOINTS, every_steps=schedule.checkpoint_every, keep=schedule.keep_checkpoints),
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


def _ledger(trainer: L.Trainer) -> list[dict[str, int]]:
    """What became of the places of every finished epoch."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback.epochs for callback in callbacks if isinstance(callback, EpochLedger))


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.stem.removeprefix("step-"))


def heldout_report(module: PackedModule, categories: Mapping[str, str], *, seed: int) -> dict[str, Any] | None:
    """Pair accuracy on held-out queries with bootstrap intervals; None for methods without pairs."""
    scores = module.heldout_scores
    if scores is None:
        return None
    return accuracy_report(
        scores.keys, scores.chosen, scores.rejected, [categories.get(key, "unknown") for key in scores.keys], seed=seed
    )


def full_state(module: PackedModule) -> dict[str, Tensor] | None:
    """The unsharded state dict of a sharded model (every rank calls this), or None for a plain one."""
    return gather_state(module.model) if is_sharded(module.model) else None


def finish(
    trainer: L.Trainer, module: PackedModule, out: Path, summary: dict[str, Any], save: Callable[[Any], None]
) -> dict[str, Any]:
    """Export the trained model and write the summary, on rank 0; every rank calls this and waits for it.

    The checkpoints go once the model is there: with the optimizer's state they are several times its size.
    """
    state = full_state(module)
    if trainer.is_global_zero:
        save(state)
        (out / METRICS).write_text(json.dumps(summary, indent=2) + "\n")
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    trainer.strategy.barrier("after export")
    return summary


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
