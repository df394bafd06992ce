"""What a training stage is going to do, from the shards' index and the checkpoint's configuration alone: `plan=true`.

Nothing is decoded and no weight is loaded. Tokens are estimated from the index, at what the text of a few queries
costs; the same estimates fill micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.feed.plan import StepPlan, micro_batches
from mmrlhf.feed.preflight import Preflight, look_ahead
from mmrlhf.feed.selection import usable
from mmrlhf.inference.passes import CACHE_PER_BUDGET
from mmrlhf.models.features import bytes_per_token
from mmrlhf.models.footprint import footprint
from mmrlhf.models.load import checkpoint_context, load_config
from mmrlhf.models.processors import load_processor
from mmrlhf.models.settings import untrained
from mmrlhf.models.step_bytes import Footprint
from mmrlhf.shards.index import Index
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.tokens.templates import AnswerTemplate, Template
from mmrlhf.training.advice import smaller
from mmrlhf.training.ranks import Ranks, device_memory, host_memory
from mmrlhf.training.room import RESERVE, Claim, claims, host_need
from mmrlhf.training.settings import TrainSettings
from mmrlhf.training.workbench import schedule_data


@dataclass(frozen=True)
class Preview:
    """What a stage trains on and what a step costs.

    groups, pairs (of responses of different rank) and tokens are those of the first epoch. Tokens are estimates; memory
    is bytes on one rank's device, scoring those of writing critiques and scoring them with the result (None without),
    and device_bytes what it has. host is bytes of one rank on the host: `loading` a checkpoint, before its model is
    split or moved, and `shards` that stay there while it trains (`trainer.cpu_offload`); host_bytes what it has.
    on_host: device and host are one memory. vision_features are bytes on disk (`runtime.vision_cache_gib`). preflight
    is what will not fit or be cut, of training and held-out queries. smaller: where it does not fit, settings that take
    less.
    """

    groups: int
    pairs: int
    text_tokens: int
    visual_tokens: int
    steps: int
    micro_batches_per_step: float
    largest_micro_batch: int
    memory: Mapping[str, float]
    scoring: Mapping[str, float] | None
    vision_features: int
    device_bytes: int | None
    preflight: Preflight
    host: Mapping[str, float]
    host_bytes: int | None
    on_host: bool
    smaller: str

    @property
    def fits(self) -> bool | None:
        """Whether the estimate with its reserve is below the device's memory; None where that is not known.

        What lies on the host, and what loading takes there, has to fit, too.
        """
        if self.device_bytes is None:
            return None
        return all(claim.share < 1 for claim in self.claims)

    @property
    def claims(self) -> list[Claim]:
        """What has to fit where."""
        return claims(
            self.memory, self.host, device_bytes=self.device_bytes, host_bytes=self.host_bytes, on_host=self.on_host,
            reserve=RESERVE,
        )  # fmt: skip


def preview_stage(
    *,
    shards: str | Path,
    checkpoint: str | Path,
    training: TrainSettings,
    template: Template,
    reading: Reading = "apart",
    ranks: Ranks,
    forwards: int = 1,
    frozen_copy: bool = False,
) -> Preview:
    """Predict a training stage.

    Args:
        shards: folder of shards, or its address.
        checkpoint: any checkpoint of the architecture that trains.
        training: as the stage gets it.
        template: says whether critiques are among the tokens.
        reading: whether a query's responses are read apart or in turn.
        ranks: that train.
        forwards: of a micro-batch before its backward.
        frozen_copy: whether a reference model lies in memory, too.
    """
    dataset, data, ahead = _open_data(shards, checkpoint, training, template, reading)
    epoch = _read_epoch(dataset, data, training.schedule.token_budget, ranks.number)
    take = partial(_take, checkpoint, forwards=forwards, frozen_copy=frozen_copy)
    memory, host = take(epoch, training, ranks)
    found = Preview(
        groups=epoch.groups,
        pairs=epoch.pairs,
        text_tokens=epoch.tokens - epoch.visual_tokens,
        visual_tokens=epoch.visual_tokens,
        steps=data.total_steps,
        micro_batches_per_step=float(median(epoch.micro_batches)),
        largest_micro_batch=sum(tokens for tokens, _ in epoch.largest),
        memory=memory,
        scoring=None if isinstance(template, AnswerTemplate) else _scoring_memory(checkpoint, training, epoch.longest),
        vision_features=epoch.visual_tokens * bytes_per_token(load_config(checkpoint), training.model.precision),
        device_bytes=device_memory(ranks),
        preflight=ahead,
        host=host,
        host_bytes=host_memory(ranks),
        on_host=ranks.on_host,
        smaller="",
    )
    if found.fits is not False:
        return found
    return replace(found, smaller=_advice(found, epoch, training, ranks, take, start=checkpoint))


_Take = Callable[["_Epoch", TrainSettings, Ranks], tuple[dict[str, float], dict[str, float]]]


def _advice(
    found: Preview, epoch: _Epoch, training: TrainSettings, ranks: Ranks, take: _Take, *, start: str | Path
) -> str:
    """What takes less of the memory that is shortest, a smaller token budget among it where that can help."""

    def share(epoch: _Epoch, training: TrainSettings, ranks: Ranks) -> float:
        memory, host = take(epoch, training, ranks)
        rooms = {"device_bytes": device_memory(ranks), "host_bytes": host_memory(ranks), "on_host": ranks.on_host}
        return max(claim.share for claim in replace(found, memory=memory, host=host, **rooms).claims)

    # a micro-batch holds one query at least
    least = replace(epoch, largest=[max(epoch.largest)], micro_batches=[2])
    budget = f"model.token_budget below {training.schedule.token_budget}", share(least, training, ranks)
    return smaller(training, ranks, partial(share, epoch), budget, start=start)


@dataclass(frozen=True)
class _Epoch:
    """What the first epoch reads.

    longest: tokens of its longest query; micro_batches: of a rank in each step; largest: (tokens, those of media) of
    every query of the largest micro-batch.
    """

    groups: int
    pairs: int
    tokens: int
    visual_tokens: int
    longest: int
    micro_batches: Sequence[int]
    largest: Sequence[tuple[int, int]]


def _read_epoch(dataset: GroupDataset, data: PreferenceDataModule, budget: int, ranks: int) -> _Epoch:
    plans = data.first_epoch()
    seen = [int(row) for plan in plans for row in plan.indices[plan.weights > 0]]
    entries = {row: dataset.index.entries[row] for row in seen}
    costs = {row: dataset.cost(row) for row in entries}
    # Training fills its micro-batches by rounded sizes of pictures; what is in them then has its own.
    media = dict(zip(entries, dataset.encoder.visual.common_sizes(list(entries.values())), strict=True))
    true = {row: costs[row] - dataset.encoder.visual.estimate(entries[row]) + media[row] for row in entries}
    counts, largest = _micro_batches(plans, costs, true, budget, ranks)
    return _Epoch(
        groups=len(seen),
        pairs=sum(entries[row].num_pairs for row in seen),
        tokens=sum(true[row] for row in seen),
        visual_tokens=sum(media[row] for row in seen),
        longest=max(true.values()),
        micro_batches=counts,
        largest=[(true[row], media[row]) for row in largest],
    )


def _take(
    checkpoint: str | Path, epoch: _Epoch, training: TrainSettings, ranks: Ranks, *, forwards: int, frozen_copy: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes of one rank, on its device in the step with the largest micro-batch, and on the host."""
    needs, moments = footprint(checkpoint, training.model, on_host=ranks.on_host), training.optim.moments
    copy = footprint(checkpoint, untrained(training.model)).whole_bytes if frozen_copy else 0.0
    memory = _step_memory(needs, epoch, ranks, forwards=forwards, frozen_copy=copy, moments=moments)
    return memory, host_need(needs, checkpoint, ranks, moments=moments, frozen_copy=copy)


def _step_memory(
    needs: Footprint, epoch: _Epoch, ranks: Ranks, *, forwards: int, frozen_copy: float, moments: float
) -> dict[str, float]:
    """Bytes of one rank in the step with the largest micro-batch."""
    tokens, of_media = (sum(each[place] for each in epoch.largest) for place in (0, 1))
    # under a mask groups are computed side by side, each as long as the longest
    computed = len(epoch.largest) * max((own for own, _ in epoch.largest), default=0) if needs.masked else tokens
    return needs.predict(
        row_tokens=computed,
        # Words are mostly responses, whose log-probabilities count.
        label_tokens=tokens - of_media,
        visual_tokens=of_media,
        num_groups=max(1, len(epoch.largest)),
        accumulates=max(epoch.micro_batches) > 1,
        num_shards=ranks.sharing,
        forwards=forwards,
        frozen_copy=frozen_copy,
        moments=moments,
        offloaded=ranks.offloaded,
    )


def _scoring_memory(checkpoint: str | Path, training: TrainSettings, longest: int) -> Mapping[str, float]:
    """Bytes of writing critiques and scoring them with the result."""
    budget = training.schedule.token_budget
    return footprint(checkpoint, untrained(training.model)).predict_scoring(
        cache_tokens=CACHE_PER_BUDGET * budget, row_tokens=max(budget, longest)
    )


def _micro_batches(
    plans: Sequence[StepPlan], costs: Mapping[int, int], true: Mapping[int, int], budget: int, ranks: int
) -> tuple[list[int], list[int]]:
    """Micro-batches of a rank in each step, and the rows of the largest of all."""
    counts, largest = [], list[int]()
    for plan in plans:
        own = [costs[int(row)] for row in plan.indices]
        bins = micro_batches(own, token_budget=budget, world_size=ranks)
        counts.append(len(bins) // ranks)
        rows = [[int(plan.indices[i]) for i in members] for members in bins]
        largest = max(largest, *rows, key=lambda members: sum(true[row] for row in members))
    return counts, largest


def _open_data(
    shards: str | Path, checkpoint: str | Path, training: TrainSettings, template: Template, reading: Reading
) -> tuple[GroupDataset, PreferenceDataModule, Preflight]:
    """What training would read, with its plan: the rows of the same selection, split and mixture, that can be used."""
    index, schedule = Index.load(shards), training.schedule
    train, heldout = schedule.queries.train(index).rows, schedule.queries.heldout(index).rows
    encoder = Encoder(
        load_processor(checkpoint),
        template=template,
        positions=lambda ids, media: torch.arange(len(ids))[None],
        media=training.media,
        max_tokens=checkpoint_context(checkpoint, training.model),
        too_long=training.model.too_long,
        reading=reading,
    )
    dataset = GroupDataset(index, encoder)
    dataset.calibrate(train)
    ahead = look_ahead(index, [*train, *heldout], encoder)
    return dataset, schedule_data(dataset, schedule, usable(index, train, ahead.left_out)), ahead
