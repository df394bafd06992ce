"""What a training stage works with: a model with its encoder, and the data of a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.feed.module import GroupDataset, PreferenceDataModule
from mmrlhf.feed.preflight import look_ahead
from mmrlhf.feed.selection import usable
from mmrlhf.feed.shared_memory import require_shared_memory
from mmrlhf.feed.steps import MAX_DAMAGED_IN_A_ROW
from mmrlhf.inference.probes import encoder_of
from mmrlhf.media.damage import Damage
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone, stored_dtype
from mmrlhf.processes import Group
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.critique_tables import TableCritiques
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.tokens.templates import Template
from mmrlhf.training.settings import Schedule, TrainSettings, require_plain_base
from mmrlhf.training.vision_cache import keep_features
from mmrlhf.types import PreferenceGroup


@dataclass
class Workbench:
    """A model with its encoder and data, ready for a method; `dtype` is that of the checkpoint's files."""

    model: PackedModel
    encoder: Encoder
    index: Index
    data: PreferenceDataModule
    schedule: Schedule
    precision: Any
    dtype: torch.dtype
    quarantine: Quarantine
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
    reading: Reading = "apart",
    needs_pairs: bool,
    runtime: Runtime,
) -> Workbench:
    """Load shards and model and build the data module.

    Args:
        tables: side-cars whose columns join each query; queries that they left out are left out here, too.
        damage: groups also hold damaged copies of their media.
        prepare: changes a query before it is encoded.
        make_head: width of the hidden state -> score head, for reward models; dimensions: annotated scores to read;
            reading: whether a query's responses are read apart or in turn.
        needs_pairs: whether a data set without two responses of different rank is an error.

    Raises:
        ConfigError: shared memory does not hold what worker processes would; `require_plain_base`.
        DataError: nothing to train on.
        ModelError, HubError: the checkpoint cannot be used.
    """
    require_plain_base(policy, training)
    model, schedule = training.model, training.schedule
    L.seed_everything(schedule.seed, verbose=False)
    index = Index.load(shards)
    chosen = schedule.queries.train(index)
    train, heldout = chosen.rows, schedule.queries.heldout(index).rows
    read = [*tables, *([prepare.table] if isinstance(prepare, TableCritiques) else [])]
    before = {key: why for table in read for key, why in table.left_out.items()}
    quarantine = _quarantine(index, [*train, *heldout], before, runtime)
    train, heldout = usable(index, train, quarantine), usable(index, heldout, quarantine)
    earlier = len(quarantine)
    _check_trainable(index, train, shards, schedule, needs_pairs)
    backbone, processor = load_backbone(policy, model)
    head = make_head(backbone.config.get_text_config().hidden_size) if make_head is not None else None
    packed = PackedModel(backbone, model, score_head=head)
    encoder = encoder_of(
        packed, processor, template=template, media=training.media, damage=damage, dimensions=dimensions,
        reading=reading,
    )  # fmt: skip
    dataset = GroupDataset(index, encoder, tables=tables, prepare=prepare, cache_gib=runtime.cache_gib)
    groups = -(-schedule.groups_per_step // Group.from_environment().size)
    require_shared_memory(_first_group(dataset, train), groups_per_item=groups, num_workers=runtime.num_workers)
    dataset.calibrate(train)
    look_ahead(index, [*train, *heldout], encoder, prepare=prepare).settle(quarantine, runtime.preflight)
    train, heldout = usable(index, train, quarantine), usable(index, heldout, quarantine)
    _check_trainable(index, train, shards, schedule, needs_pairs)
    data = schedule_data(dataset, schedule, train, heldout, num_workers=runtime.num_workers)
    categories = {index.entries[int(row)].key: index.entries[int(row)].category for row in heldout}
    keep_features(packed, index, [*train, *heldout], encoder, runtime)
    left_out = {"left out by earlier passes": earlier, "do not fit or are refused": len(quarantine) - earlier}
    excluded = {**chosen.excluded, **{why: number for why, number in left_out.items() if number}}
    return Workbench(
        packed, encoder, index, data, schedule, model.precision, stored_dtype(policy), quarantine, categories, excluded
    )


def _quarantine(index: Index, rows: Sequence[int], before: Mapping[str, str], runtime: Runtime) -> Quarantine:
    """A quarantine that begins with what earlier passes left out of these rows; raises as `Quarantine.check`."""
    keys = {index.entries[int(row)].key for row in rows} if before else set()
    found = Quarantine(len(rows), runtime.max_damaged, {key: why for key, why in before.items() if key in keys})
    found.check("the tables that this stage reads")
    return found


def _first_group(dataset: GroupDataset, rows: np.ndarray) -> EncodedGroup:
    """Encode the first query that can be read: what all records lack (a critique, a reward) is no damage of one.

    Raises:
        DataError: none of the first can be read.
    """
    for place, row in enumerate(rows[:MAX_DAMAGED_IN_A_ROW]):
        try:
            return dataset[int(row)]
        except MissingRowError:
            raise
        except DataError:  # counted when it is trained on
            if place + 1 == min(len(rows), MAX_DAMAGED_IN_A_ROW):
                raise
    raise AssertionError("there are rows to train on")


def schedule_data(
    dataset: GroupDataset,
    schedule: Schedule,
    train: np.ndarray,
    heldout: Sequence[int] | np.ndarray = (),
    *,
    num_workers: int = 0,
) -> PreferenceDataModule:
    """The data of a schedule: rows to train on and rows to validate on, of which `schedule` makes steps."""
    return PreferenceDataModule(
        dataset,
        train_indices=train,
        val_indices=heldout,
        epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        groups_per_step=schedule.groups_per_step,
        token_budget=schedule.token_budget,
        seed=schedule.seed,
        num_workers=num_workers,
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
