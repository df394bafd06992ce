"""Continuing branches from shared prefixes writes what the stock `generate` writes row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE

from mmrlhf.models import decoding as generation
from mmrlhf.models.decoding import generate
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("template", [AnswerTemplate(), CritiqueTemplate(instruction="")], ids=["answer", "critique"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_greedy_equals_stock_generate(
    family: str, template: Template, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Mixed modalities and ragged branches in one batch against one call of `generate` per response."""
    model, encoder = build(tiny_folders[family], template)
    # A head tied to random embeddings repeats one token; one of its own makes the next depend on everything before it.
    torch.manual_seed(1)
    head = model.backbone.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    end = encoder.tokenizer.eos_token_id
    found = generate(model, [encoder.context(g) for g in groups], max_new_tokens=10, end_tokens=[end])
    for group, written in zip(groups, found, strict=True):
        asked = group.responses if template.name == "critique" else group.responses[:1]
        assert len(written) == len(asked)
        for response, ids in zip(asked, written, strict=True):
            inputs, _ = encoder.stock_inputs(group, response, with_answer=False)
            stock = model.backbone.generate(**inputs, max_new_tokens=10, do_sample=False)[0]
            stock = stock[inputs["input_ids"].shape[1] :].tolist()
            assert ids == (stock[: stock.index(end)] if end in stock else stock)


def test_samples_are_reproducible_and_differ(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """A seed fixes the samples; samples of one branch are not copies of each other."""
    model, encoder = build(tiny_folders["llava_onevision"])
    context = [encoder.context(groups[0])]
    settings = {
        "max_new_tokens": 12,
        "end_tokens": [encoder.tokenizer.eos_token_id],
        "temperature": 1.5,
        "num_samples": 4,
    }
    first = generate(model, context, seed=3, **settings)
    assert first == generate(model, context, seed=3, **settings)
    assert first != generate(model, context, seed=4, **settings)
    assert len(first[0]) == 4 and len({tuple(ids) for ids in first[0]}) > 1


def test_ends_at_the_end_token(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """With every token an end token nothing is written; the model's mode is left as it was."""
    model, encoder = build(tiny_folders["internvl"])
    model.train()
    every = range(len(encoder.tokenizer))
    assert generate(model, [encoder.context(groups[0])], max_new_tokens=5, end_tokens=every) == [[[]]]
    assert model.training


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_branches_end_when_they_like(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches and groups that leave early change nothing for the others: what is written is what would have been."""
    model, encoder = build(tiny_folders[family], CritiqueTemplate(instruction=""))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)  # small ones repeat one token for ever
    contexts = [encoder.context(group) for group in groups]
    whole = generate(model, contexts, max_new_tokens=12, end_tokens=[])
    assert all(len(ids) == 12 for written in whole for ids in written)
    left: list[tuple[int, int]] = []
    keep = generation._Decoding.keep
    monkeypatch.setattr(
        generation._Decoding, "keep", lambda s, alive: (left.append(tuple(alive.shape)), keep(s, alive))
    )
    ends = list(range(0, len(encoder.tokenizer), 7))
    found = generate(model, contexts, max_new_tokens=12, end_tokens=ends)
    expected = [[_until(ids, ends) for ids in written] for written in whole]
    assert found == expected
    assert len({len(ids) for written in found for ids in written}) > 3
    assert len(left) > 1 and left[-1][0] < len(groups), "groups left the batch in between"


def _until(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
