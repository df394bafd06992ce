"""What text costs, from its number of characters: a bound that no text exceeds, and an estimate that is learned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoProcessor

from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.tokens.text_cost import TextCost
from mmrlhf.types import PreferenceGroup, Response

TEMPLATES: tuple[Template, ...] = (AnswerTemplate(), CritiqueTemplate(instruction=""))


@pytest.fixture(scope="module")
def encoders(tiny_folders: dict[str, Path]) -> list[Encoder]:
    processor = AutoProcessor.from_pretrained(tiny_folders["internvl"])
    return [
        Encoder(processor, template=template, positions=lambda ids, media: torch.arange(len(ids))[None])
        for template in TEMPLATES
    ]


def cost_of(encoder: Encoder) -> TextCost:
    return TextCost(encoder.template, encoder.chat, encoder.texts, in_turn=False)


def asked(prompt: str, *answers: str) -> PreferenceGroup:
    return PreferenceGroup("k", prompt, tuple(Response(text, critiques={"full": text}) for text in answers))


def entry_of(group: PreferenceGroup) -> Any:
    said = sum(len(response.text) for response in group.responses)
    return SimpleNamespace(
        num_turns=1, num_responses=len(group.responses), text_chars=group.prompt.num_chars + said, critique_chars=said
    )


@given(prompt=st.text(max_size=40), answer=st.text(min_size=1, max_size=40))
@example(prompt="\U0001f9d1\u200d\U0001f680" * 100, answer="\u0f04")
def test_no_text_exceeds_the_bound(encoders: list[Encoder], prompt: str, answer: str) -> None:
    """A character of four bytes that the tokenizer does not know is four tokens."""
    group = asked(prompt, answer)
    for encoder in encoders:
        assert encoder(group).num_tokens <= cost_of(encoder).most(entry_of(group))


def test_the_rate_is_that_of_the_samples(encoders: list[Encoder]) -> None:
    """Ten percent above their mean, whatever a character costs; of no samples, that of English prose."""
    groups = [asked("what is it ?" * n, "a red circle " * n, "blue") for n in range(1, 6)]
    for encoder in encoders:
        counted = [(entry_of(group), encoder(group).num_tokens) for group in groups]
        cost = cost_of(encoder)
        before = [cost.estimate(entry) for entry, _ in counted]
        cost.learn(counted)
        true = sum(tokens for _, tokens in counted)
        assert 1.1 * true <= sum(cost.estimate(entry) for entry, _ in counted) <= 1.1 * true + len(counted)
        cost.learn([])
        assert [cost.estimate(entry) for entry, _ in counted] == before
