"""A packed row equals separate rows through the stock model: the law that the whole project stands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import TRAIN_ALL, assert_same, build, gradients
from stand_ins.tiny_models import AVAILABLE, image, responses
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from benchmarks.equivalence import stock_outputs
from mmrlhf.models.families import language_layers, vision_layers
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("template", [AnswerTemplate(), CritiqueTemplate(instruction="")], ids=["answer", "critique"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_packed_row_equals_stock_rows(
    family: str, template: Template, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Forward and gradient: image, several images, video, text only; K = 3, 2, 4, 1; all groups in one row."""
    model, encoder = build(tiny_folders[family], template, **TRAIN_ALL)
    packed = model(pack_groups([encoder(group) for group in groups]))
    stock = stock_outputs(model, encoder, groups)
    torch.testing.assert_close(packed.logprob, stock.logprob, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(packed.hidden, stock.hidden, rtol=1e-4, atol=1e-5)
    assert packed.num_tokens.tolist() == stock.num_tokens.tolist()
    assert_same(gradients(model, packed), gradients(model, stock))


@pytest.mark.parametrize("family", AVAILABLE)
def test_row_layout_equals_packed(family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """The fall-back layout says the same, forward and gradient."""
    packed, encoder = build(tiny_folders[family], **TRAIN_ALL)
    rows, _ = build(tiny_folders[family], layout="rows", **TRAIN_ALL)
    batch = pack_groups([encoder(group) for group in groups])
    left, right = packed(batch), rows(batch)
    torch.testing.assert_close(left.logprob, right.logprob, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(left.hidden, right.hidden, rtol=1e-4, atol=1e-5)
    assert_same(gradients(packed, left), gradients(rows, right))


@pytest.mark.parametrize("family", AVAILABLE)
def test_neighbours_and_order_change_nothing(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """A group scores the same alone, behind others, and with its responses in another order."""
    model, encoder = build(tiny_folders[family])
    encoded = [encoder(group) for group in groups]
    together = model(pack_groups(encoded[::-1])).logprob
    alone = torch.cat([model(pack_groups([group])).logprob for group in encoded[::-1]])
    torch.testing.assert_close(together, alone, rtol=2e-6, atol=2e-5)
    first = groups[0]
    flipped = PreferenceGroup("one", first.prompt, first.responses[::-1], first.media)
    swapped = model(pack_groups([encoder(flipped)])).logprob
    torch.testing.assert_close(swapped.flip(0), alone[-3:], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("family", AVAILABLE)
def test_gradient_checkpointing_and_chunks_change_nothing(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Recomputed layers and log-probabilities in chunks of three tokens give the same gradient."""
    plain, encoder = build(tiny_folders[family], **TRAIN_ALL)
    chunked, _ = build(tiny_folders[family], gradient_checkpointing=True, logprob_chunk=3, **TRAIN_ALL)
    chunked.train()
    batch = pack_groups([encoder(group) for group in groups])
    assert_same(gradients(plain, plain(batch)), gradients(chunked, chunked(batch)))


def test_vision_runs_once_per_image(tiny_folders: dict[str, Path]) -> None:
    """K responses cost one pass of the tower over their picture."""
    model, encoder = build(tiny_folders["internvl"])
    seen: list[int] = []
    tower = model.backbone.base_model.vision_tower
    tower.register_forward_hook(lambda m, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True)
    group = PreferenceGroup("k", "what ?", responses("a", "b", "c", "d", "e"), (image(56, 56),))
    encoded = encoder(group)
    model(pack_groups([encoded]))
    assert seen == [len(encoded.media["pixel_values"])]


@pytest.mark.parametrize("family", AVAILABLE)
def test_frozen_tower_stays_in_evaluation_mode_without_gradient(family: str, tiny_folders: dict[str, Path]) -> None:
    """`train()` does not wake a frozen tower, and nothing of it is recorded for backward, recomputed layers or not."""
    for settings in ({}, {"gradient_checkpointing": True}, {**ADAPTERS, "gradient_checkpointing": True}):
        model, encoder = build(tiny_folders[family], **settings)
        model.train()
        recorded = _what_records(model.backbone)
        assert language_layers(model.backbone).training
        model(pack_groups([encoder(PreferenceGroup("k", "what ?", responses("a", "b"), (image(56, 56),)))]))
        assert recorded and not any(recorded)


def _what_records(backbone: PreTrainedModel) -> list[bool]:
    """Whether backward needs what a layer of the tower gives, for each of its calls from now on."""
    recorded: list[bool] = []

    def look(module: torch.nn.Module, inputs: object, output: object) -> None:
        assert not module.training
        recorded.extend(leaf.requires_grad for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))

    for layer in vision_layers(backbone):
        layer.register_forward_hook(look)
    return recorded


ADAPTERS = {"language": "lora", "lora_rank": 4, "projector": "frozen"}


def test_recomputed_layers_change_no_gradient_of_adapters(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Of all parts; no input of the first layer wants a gradient then, and the first layer's adapters get theirs."""
    settings = {**ADAPTERS, "vision": "lora"}
    torch.manual_seed(0)
    plain, encoder = build(tiny_folders["llava_onevision"], **settings)
    torch.manual_seed(0)
    recomputed, _ = build(tiny_folders["llava_onevision"], gradient_checkpointing=True, **settings)
    recomputed.train()
    batch = pack_groups([encoder(group) for group in groups])
    assert_same(gradients(plain, plain(batch)), gradients(recomputed, recomputed(batch)))


def test_largest_logits_are_one_chunk(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """The language-model head never sees more than `logprob_chunk` tokens, and never a prompt token."""
    model, encoder = build(tiny_folders["qwen2_5_vl"], logprob_chunk=4)
    sizes: list[int] = []
    head = model.backbone.get_output_embeddings()
    head.register_forward_hook(lambda m, args, out: sizes.append(out.shape[0]))
    batch: PackedBatch = pack_groups([encoder(group) for group in groups])
    model(batch)
    assert max(sizes) <= 4 and sum(sizes) == len(batch.label_ids)
