"""What a preference stage lets its policy answer while it trains: queries, reward model and judge for the callback."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrlhf.callbacks.answers import HeldOutAnswers
from mmrlhf.chain.runtime import Runtime
from mmrlhf.feed.selection import usable
from mmrlhf.inference.passes import decode_text, read_usable, with_responses
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import pick_device
from mmrlhf.models.decoding import generate
from mmrlhf.models.settings import ModelSettings
from mmrlhf.ranges import Count, Natural, check_fields
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.sample_cards import query_sample, read_pictures
from mmrlhf.shards.index import Index
from mmrlhf.summaries.validation_files import ANSWERS
from mmrlhf.tokens.encode import Encoder
from mmrlhf.training.settings import Schedule
from mmrlhf.types import PreferenceGroup

Judge = Callable[[Mapping[str, Any], str], float]


@dataclass(frozen=True)
class AnswerSettings:
    """Which held-out answers are taken at every validation, and what is measured on them.

    Args:
        num_queries: held-out queries that are answered; 0: none.
        max_new_tokens: longest answer; the likeliest one is taken.
        reward_model: folder that the reward stage wrote; scores the answers. It is loaded for that and let go again.
        max_critique_tokens: its longest critique.
        judge: (group's meta, answer) -> true quality, where it is known.
    """

    num_queries: Natural = 8
    max_new_tokens: Count = 256
    reward_model: Path | str | None = None
    max_critique_tokens: Count = 512
    judge: Judge | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def answer_callbacks(
    out: Path,
    settings: AnswerSettings,
    index: Index,
    encoder: Encoder,
    model: ModelSettings,
    schedule: Schedule,
    quarantine: Quarantine,
    runtime: Runtime,
) -> list[HeldOutAnswers]:
    """The callback that takes held-out answers into `out/answers`; none where there is nothing to answer."""
    if settings.num_queries == 0:
        return []
    rows = replace(schedule.queries, val_limit=settings.num_queries).heldout(index).rows
    asked = read_usable(index, usable(index, rows, quarantine), encoder.context, quarantine)
    if not asked:
        return []
    groups = [group for group, _ in asked]

    def answer(policy: nn.Module) -> list[str]:
        contexts = [encoder.context(group) for group in groups]
        written = generate(
            policy,  # type: ignore[arg-type]
            contexts, max_new_tokens=settings.max_new_tokens, end_tokens=encoder.end_tokens,
        )  # fmt: skip
        return [decode_text(encoder.processor, one.ids) for (one,) in written]

    def measure(answers: Sequence[str]) -> dict[str, list[float]]:
        return _measure(groups, answers, settings, model, runtime)

    samples = [query_sample(group, read_pictures(group)) for group in groups]
    return [HeldOutAnswers(out / ANSWERS, samples, answer=answer, measure=measure)]


def _measure(
    groups: Sequence[PreferenceGroup],
    answers: Sequence[str],
    settings: AnswerSettings,
    model: ModelSettings,
    runtime: Runtime,
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"words": [float(len(text.split())) for text in answers]}
    if settings.judge is not None:
        both = zip(groups, answers, strict=True)
        found["quality"] = [settings.judge(group.meta, text) if group.meta else float("nan") for group, text in both]
    if settings.reward_model is not None:
        judge = RewardModel.from_pretrained(
            settings.reward_model,
            PassSettings(model=model),
            CritiqueSettings(max_tokens=settings.max_critique_tokens),
            device=pick_device(runtime),
        )
        asked = [with_responses(group, [text]) for group, text in zip(groups, answers, strict=True)]
        # what the policy's family reads, the reward model's may refuse: no number then, and no end of the run
        left_out = Quarantine(len(asked), max_damaged=1.0)
        verdicts = judge.score_groups(asked, quarantine=left_out)
        found["reward"] = [one[0].reward if one else float("nan") for one in verdicts]
        del judge
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found
