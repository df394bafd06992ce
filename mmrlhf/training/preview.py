"""What a training stage is going to do, from the shards' index and the checkpoint's configuration alone: `plan=true`.

Nothing is decoded and no weight is loaded. Tokens are estimated from the index, at what the text of a few queries
costs; the same estimates fill micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mmrlhf.chain.order import Node, parse_reference
from mmrlhf.chain.runner import Runner
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.feed.plan import StepPlan, micro_batches
from mmrlhf.feed.preflight import Preflight, look_ahead
from mmrlhf.feed.selection import usable
from mmrlhf.inference.passes import CACHE_PER_BUDGET, untrained
from mmrlhf.models.features import bytes_per_token
from mmrlhf.models.footprint import Footprint, footprint
from mmrlhf.models.load import checkpoint_context, load_config, stored_dtype
from mmrlhf.models.processors import load_processor
from mmrlhf.shards.index import Index
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.tokens.templates import AnswerTemplate, Template
from mmrlhf.training.room import RESERVE, Ranks, device_memory, host_memory, smaller
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
    is what will not fit or be cut, of training and held-out queries. smaller: settings that take less memory.
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
        device = RESERVE * self.memory["total"] + (self.host["shards"] if self.on_host else 0)
        return device < self.device_bytes and (self.host_bytes is None or max(self.host.values()) < self.host_bytes)


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
    model, moments = training.model, training.optim.moments
    dataset, data, ahead = _open_data(shards, checkpoint, training, template, reading)
    epoch = _read_epoch(dataset, data, training.schedule.token_budget, ranks.number)
    needs = footprint(checkpoint, model)
    copy = footprint(checkpoint, untrained(model)).whole_bytes if frozen_copy else 0.0
    mapped = needs.mapped if stored_dtype(checkpoint) is torch.bfloat16 else 0
    return Preview(
        groups=epoch.groups,
        pairs=epoch.pairs,
        text_tokens=epoch.tokens - epoch.visual_tokens,
        visual_tokens=epoch.visual_tokens,
        steps=data.total_steps,
        micro_batches_per_step=float(median(epoch.micro_batches)),
        largest_micro_batch=sum(tokens for tokens, _ in epoch.largest),
        memory=_step_memory(needs, epoch, ranks, forwards=forwards, frozen_copy=copy, moments=moments),
        scoring=None if isinstance(template, AnswerTemplate) else _scoring_memory(checkpoint, training, epoch.longest),
        vision_features=epoch.visual_tokens * bytes_per_token(load_config(checkpoint), model.precision),
        device_bytes=device_memory(ranks),
        preflight=ahead,
        host={
            "loading": needs.whole_bytes + copy - mapped,
            "shards": needs.host_bytes(num_shards=ranks.sharing, moments=moments) if ranks.offloaded else 0.0,
        },
        host_bytes=host_memory(ranks),
        on_host=ranks.on_host,
        smaller=smaller(training, ranks),
    )


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
    true = {row: costs[row] - dataset.encoder.estimate_visual_tokens(entries[row]) + media[row] for row in entries}
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


def _step_memory(
    needs: Footprint, epoch: _Epoch, ranks: Ranks, *, forwards: int, frozen_copy: float, moments: float
) -> Mapping[str, float]:
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


def preview_chain(
    chain: Sequence[Node], runner: Runner, *, make: Callable[[Node], Mapping[str, Any]]
) -> dict[str, Preview | str]:
    """Predict every training stage of a chain; only what makes its shards and its first checkpoint runs for it.

    Args:
        make: makes the objects that a node's settings describe.
    """
    nodes = {node.name: node for node in chain}
    training = [node.name for node in chain if "training" in node.settings]
    wanted = {stage for name in training for stage in _sources(nodes, name, training)}
    ready: set[str] = set()
    for node in chain:
        if node.name in wanted and ready.issuperset(node.references):
            ready.add(node.name)
    artifacts = {built.stage: built.folder for built in runner.run([node for node in chain if node.name in ready])}
    ranks = Ranks.of(runner.runtime.get("trainer", {}))
    found: dict[str, Preview | str] = {}
    for name in training:
        shards, checkpoint = (_resolve(nodes, artifacts, name, key) for key in ("shards", "policy"))
        if shards is None or checkpoint is None:
            found[name] = "what it reads is made by stages that have not run yet"
            continue
        made = make(nodes[name])
        found[name] = preview_stage(
            shards=shards,
            checkpoint=checkpoint,
            training=made["training"],
            template=_template(made.get("critique")),
            reading=made.get("reading", "apart"),
            ranks=ranks,
            # mDPO reads every query a second time, with a damaged picture
            forwards=2 if getattr(made.get("objective"), "image_weight", 0) > 0 else 1,
            frozen_copy=made.get("reference_from") == "frozen_copy",
        )
    return found


def _template(critique: Any) -> Template:
    """What a stage's tokens say; `critique` is the reward stage's choice, and some responses may have none of it."""
    return AnswerTemplate() if critique is None else replace(critique.template, allow_missing=True)


def _sources(nodes: Mapping[str, Node], name: str, training: Collection[str]) -> set[str]:
    """Stages that make a training stage's shards or checkpoint, with theirs, up to the next training."""
    found: set[str] = set()
    waiting = [text for key in ("shards", "policy") if isinstance(text := nodes[name].settings.get(key), str)]
    while waiting:
        text = waiting.pop()
        stage = parse_reference(text)[0] if text.startswith("stage:") else None
        if stage is not None and stage not in found and stage not in training:
            found.add(stage)
            waiting += [f"stage:{reference}" for reference in nodes[stage].references]
    return found


def _resolve(nodes: Mapping[str, Node], artifacts: Mapping[str, Path], name: str, key: str) -> str | None:
    """An input's path. A checkpoint that is still to be trained has the architecture of the one it starts from."""
    value = nodes[name].settings.get(key)
    if not isinstance(value, str) or not value.startswith("stage:"):
        return value
    stage, sub = parse_reference(value)
    if stage in artifacts:
        return str(artifacts[stage] / sub)
    return _resolve(nodes, artifacts, stage, key) if key == "policy" and stage in nodes else None
