"""Continuing branches from shared prefixes writes what the stock `generate` writes row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE, formed_groups
from transformers import Cache

from mmrlhf.models import decoding_state
from mmrlhf.models.decoding import generate
from mmrlhf.models.decoding_rows import Continuation, configured_ends, placeholders
from mmrlhf.models.decoding_state import Decoding
from mmrlhf.models.forward import PackedModel
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("template", [AnswerTemplate(), CritiqueTemplate(instruction="")], ids=["answer", "critique"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_greedy_equals_stock_generate(
    family: str,
    template: Template,
    tiny_folders: dict[str, Path],
    groups: list[PreferenceGroup],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mixed modalities and ragged branches in one batch against one call of `generate` per response."""
    monkeypatch.setattr(decoding_state, "STEPS_AHEAD", 4)  # several masks for ten tokens
    model, encoder = build(tiny_folders[family], template)
    # A head tied to random embeddings repeats one token; one of its own makes the next depend on everything before it.
    torch.manual_seed(1)
    head = model.backbone.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    end = encoder.tokenizer.eos_token_id
    groups = groups + formed_groups()
    found = generate(model, [encoder.context(g) for g in groups], max_new_tokens=10, end_tokens=[end])
    for group, written in zip(groups, found, strict=True):
        asked = group.responses if template.name == "critique" else group.responses[:1]
        assert len(written) == len(asked)
        for response, ids in zip(asked, written, strict=True):
            response = response if template.name == "critique" else replace(response, media=())
            inputs, _ = encoder.stock_inputs(group, response, with_answer=False)
            never = {"suppress_tokens": placeholders(model) or None}
            stock = model.backbone.generate(**inputs, max_new_tokens=10, do_sample=False, **never)[0]
            assert ids == _until(stock[inputs["input_ids"].shape[1] :].tolist(), [end, *configured_ends(model)])


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
    assert len(first[0]) == 4 and len({tuple(each.ids) for each in first[0]}) > 1


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_what_is_drawn_depends_on_the_branch_alone(
    layout: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Alone, in another order, beside others or in small portions: the same texts."""
    model, encoder = build(tiny_folders["qwen2_5_vl"], CritiqueTemplate(instruction=""), layout=layout)
    contexts = [encoder.context(group) for group in groups]
    how = {"max_new_tokens": 8, "end_tokens": encoder.end_tokens, "temperature": 1.0, "num_samples": 2, "seed": 5}
    whole = generate(model, contexts, **how)
    assert [generate(model, [context], **how)[0] for context in contexts] == whole
    assert generate(model, contexts[::-1], **how)[::-1] == whole
    assert generate(model, contexts, cache_tokens=500, **how) == whole
    assert generate(model, contexts, **how | {"seed": 6}) != whole
    drawn = [tuple(each.ids) for written in whole for each in written]
    assert len(set(drawn)) > len(drawn) // 2, "branches and samples differ from each other"


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_samples_follow_the_model_s_probabilities(
    layout: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """First tokens of 600 samples against the softmax at temperature 2: total variation as of that many draws."""
    model, encoder = build(tiny_folders["llava_onevision"], layout=layout)
    head = model.backbone.get_output_embeddings()
    torch.manual_seed(1)
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight) * 0.3)
    group = groups[0].without_media()
    inputs, _ = encoder.stock_inputs(group, group.responses[0], with_answer=False)
    with torch.no_grad():
        logits = model.backbone(**inputs).logits[0, -1].double()
    logits[placeholders(model)] = -torch.inf
    expected = (logits / 2.0).softmax(-1)
    how = {"max_new_tokens": 1, "end_tokens": [], "temperature": 2.0, "num_samples": 600}
    (written,) = generate(model, [encoder.context(group)], **how)
    first = torch.tensor([each.ids[0] if each.ids else each.end for each in written])
    found = torch.bincount(first, minlength=len(expected)) / len(first)
    order = expected.argsort(descending=True)
    # of sets of likely tokens the share is known to 1/sqrt(600) and a half
    for many in (5, 20, 60):
        assert abs(float(found[order[:many]].sum() - expected[order[:many]].sum())) < 0.07


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_a_checkpoint_s_generation_config_is_read_for_its_ends_alone(
    layout: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Penalties and limits in it change nothing in either layout; an end token in it ends."""
    model, encoder = build(tiny_folders["llava_onevision"], layout=layout)
    head = model.backbone.get_output_embeddings()
    torch.manual_seed(1)
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    contexts, how = [encoder.context(groups[0])], {"max_new_tokens": 10, "end_tokens": []}
    config = model.backbone.generation_config
    config.eos_token_id = None
    plain = generate(model, contexts, **how)
    config.update(repetition_penalty=1.8, no_repeat_ngram_size=1, suppress_tokens=[plain[0][0].ids[0]], top_k=3)
    assert generate(model, contexts, **how) == plain
    config.eos_token_id = [plain[0][0].ids[3]]
    (ended,) = generate(model, contexts, **how)[0]
    assert ended == _until(plain[0][0].ids, config.eos_token_id) and not ended.cut


def test_ends_at_the_end_token(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """With every token an end token nothing is written; the model's mode is left as it was."""
    model, encoder = build(tiny_folders["internvl"])
    model.train()
    every = range(len(encoder.tokenizer))
    assert generate(model, [encoder.context(groups[0])], max_new_tokens=5, end_tokens=every)[0][0].ids == []
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
    model.backbone.generation_config.eos_token_id = None  # type: ignore[union-attr]
    contexts = [encoder.context(group) for group in groups]
    whole = generate(model, contexts, max_new_tokens=12, end_tokens=[])
    assert all(each.cut and len(each.ids) == 12 for written in whole for each in written)
    left: list[tuple[int, int]] = []
    keep = Decoding.keep
    monkeypatch.setattr(Decoding, "keep", lambda s, alive: (left.append(tuple(alive.shape)), keep(s, alive)))
    ends = list(range(0, len(encoder.tokenizer), 7))
    found = generate(model, contexts, max_new_tokens=12, end_tokens=ends)
    expected = [[_until(each.ids, ends) for each in written] for written in whole]
    assert found == expected
    assert len({len(each.ids) for written in found for each in written}) > 3
    assert len(left) > 1 and left[-1][0] < len(groups), "groups left the batch in between"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes (G, L) of what a model reads into its cache, forward by forward."""
    shapes, extend = list[tuple[int, ...]](), PackedModel.extend

    def counted(model: PackedModel, cache: Cache, ids: torch.Tensor, *others: Any, **media: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return extend(model, cache, ids, *others, **media)

    monkeypatch.setattr(PackedModel, "extend", counted)
    return shapes


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"], ids=["windows", "plain"])
def test_branches_may_be_read_together(
    family: str,
    tiny_folders: dict[str, Path],
    groups: list[PreferenceGroup],
    forwards: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One by one, some at a time, or all in one forward: the same is written behind them."""
    model, encoder = build(tiny_folders[family], CritiqueTemplate(instruction=""))
    torch.manual_seed(1)
    head = model.backbone.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    contexts = [encoder.context(group) for group in groups]
    written, counts = [], []
    longest = max(len(branch.ids) for context in contexts for branch in context.branches)
    for most in (1, 2 * longest, 10**6):
        monkeypatch.setattr(decoding_state, "READ_TOGETHER", most)
        written.append(generate(model, contexts, max_new_tokens=6, end_tokens=[]))
        counts.append(len(forwards) - 5)  # without steps
        forwards.clear()
    assert written[0] == written[1] == written[2]
    apart = len(contexts) if family == "gemma3" else 0  # its windows want a forward of their own for a prefix
    assert counts[0] == apart + 10 and counts[0] > counts[1] > counts[2] == apart + len(contexts)


def test_samples_of_a_prompt_begin_in_one_forward(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup], forwards: list[tuple[int, ...]]
) -> None:
    """A prefix with the beginnings of all samples, and a step for each token but the first."""
    model, encoder = build(tiny_folders["llava_onevision"])
    context = encoder.context(groups[0])
    generate(model, [context], max_new_tokens=3, end_tokens=[], temperature=1.0, num_samples=20)
    (branch,) = context.branches
    assert forwards == [(1, len(context.prefix_ids) + 20 * len(branch.ids)), (1, 20), (1, 20)]


def _until(ids: list[int], ends: list[int]) -> Continuation:
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return Continuation(ids[:place], ids[place] if place < len(ids) else None)
