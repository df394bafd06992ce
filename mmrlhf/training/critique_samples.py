"""What a reward model in training says about a few held-out queries, with their pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lightning as L

from mmrlhf.inference.passes import read_usable
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.inference.verdicts import Verdict
from mmrlhf.models.sharding import is_sharded
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.sample_cards import choose_rows, query_sample, read_pictures
from mmrlhf.shards.index import Index
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.training.settings import TrainSettings
from mmrlhf.training.workbench import Workbench
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

Samples = Callable[[L.LightningModule], list[dict[str, Any]]]


def critique_samples(
    bench: Workbench, template: CritiqueTemplate, training: TrainSettings, *, number: int, critiques: CritiqueSettings
) -> Samples:
    """Make what `HeldOutCritiques` asks: the model's critiques and rewards of held-out responses, as of now.

    Args:
        number: queries shown; the same ones every time.

    A sharded model cannot be asked by one rank alone: nothing is shown then, and the log says so.
    """
    index: Index = bench.index
    rows = choose_rows(index, list(bench.categories), number, seed=training.schedule.seed) if bench.validates else []
    groups = [group for group, _ in read_usable(index, rows, bench.encoder.context, bench.quarantine)]

    def write(module: L.LightningModule) -> list[dict[str, Any]]:
        if is_sharded(bench.model):
            log.info("a sharded model shows no critiques during training; the stage score writes them all")
            return []
        was_training = bench.model.training
        judge = RewardModel(
            bench.model,
            bench.processor,
            template=template,
            media=training.media,
            token_budget=training.schedule.token_budget,
            critiques=critiques,
            reading=bench.encoder.reading,
        )
        verdicts = judge.score_groups(groups, quarantine=Quarantine(len(groups), max_damaged=1.0)) if groups else []
        bench.model.train(was_training)
        return [_sample(group, found) for group, found in zip(groups, verdicts, strict=True) if found]

    return write


def _sample(group: PreferenceGroup, verdicts: list[Verdict]) -> dict[str, Any]:
    """One query in the form of `mmrlhf.callbacks.samples`."""
    responses = [
        {"text": response.text, "rank": response.rank, "reward": verdict.reward, "critique": verdict.critique}
        for response, verdict in zip(group.responses, verdicts, strict=True)
    ]
    return {
        **query_sample(group, read_pictures(group)),
        "responses": responses,
    }
