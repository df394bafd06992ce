"""Responses that are read in turn: what the stock model says of prefix, contexts and critique as one plain sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import TRAIN_ALL, assert_same, gradients
from stand_ins.tiny_models import AVAILABLE, image, responses
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.models.attention import choose_back_end
from mmrlhf.models.decoding import generate
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.masks import AttentionPattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import EncodedGroup, ResponseOutputs
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import in_order
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.types import PreferenceGroup

ORDERS = {"one": (2, 0, 1), "two": (1, 0), "video": (3, 1, 0, 2), "text": (0,)}


def build(
    folder: Path, critique: str = "full", reading: Any = "in_turn", **settings: Any
) -> tuple[PackedModel, Encoder]:
    chosen = ModelSettings(**settings)
    backbone, processor = load_backbone(folder, chosen)
    encoder = Encoder(
        processor,
        template=CritiqueTemplate(critique, instruction=""),
        positions=positions_for(backbone),
        media=MediaSettings(num_frames=4),
        reading=reading,
    )
    return PackedModel(backbone, chosen), encoder


def in_turn(encoder: Encoder, groups: Sequence[PreferenceGroup]) -> list[EncodedGroup]:
    return [in_order(encoder(group), ORDERS[group.key]) for group in groups]


def chained(model: PackedModel, encoder: Encoder, group: PreferenceGroup, encoded: EncodedGroup) -> ResponseOutputs:
    """Every response's own sequence through the stock model, with positions and masks of its own making."""
    inputs, _ = encoder.stock_inputs(group, group.responses[0])
    length, before = inputs["input_ids"].shape[1], encoded.prefix_ids
    logprobs, hidden = [], []
    for branch in encoded.branches:
        ids = torch.cat([before, branch.ids])
        before = torch.cat([before, branch.ids[: branch.num_context]])
        longer = {name: _longer(each, length, len(ids)) for name, each in inputs.items()}
        output: Any = model.backbone(
            **{**longer, "input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)},
            output_hidden_states=True,
            use_cache=False,
        )
        at = len(ids) - len(branch.ids) + branch.labels.nonzero()[:, 0]
        logprobs.append(output.logits[0].log_softmax(-1)[at - 1].gather(1, ids[at, None])[:, 0])
        hidden.append(output.hidden_states[-1][0, -1])
    sums, counts = torch.stack([each.sum() for each in logprobs]), torch.tensor([float(len(each)) for each in logprobs])
    return ResponseOutputs(sums, counts, torch.stack(hidden), torch.cat(logprobs))


def _longer(values: Tensor, length: int, wanted: int) -> Tensor:
    """What a processor says of each token, for a sequence that goes on with text (or ends earlier)."""
    if values.dim() != 2 or values.shape != (1, length):
        return values
    return torch.cat([values, values.new_zeros(1, max(0, wanted - length))], dim=1)[:, :wanted]


def joined(outputs: Sequence[ResponseOutputs]) -> ResponseOutputs:
    names = ("logprob", "num_tokens", "hidden", "token_logprob")
    return ResponseOutputs(*(torch.cat([getattr(each, name) for each in outputs]) for name in names))


@pytest.mark.parametrize("critique", ["full", "none"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_a_row_read_in_turn_equals_stock_sequences(
    family: str, critique: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Forward and gradient: prefix, the contexts of the order so far, one critique, in plain causal attention."""
    model, encoder = build(tiny_folders[family], critique, **TRAIN_ALL)
    encoded = in_turn(encoder, groups)
    packed = model(pack_groups(encoded))
    stock = joined([chained(model, encoder, *each) for each in zip(groups, encoded, strict=True)])
    torch.testing.assert_close(packed.hidden, stock.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed.logprob, stock.logprob, rtol=2e-6, atol=2e-5)
    assert packed.num_tokens.tolist() == stock.num_tokens.tolist()
    assert_same(gradients(model, packed), gradients(model, stock))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "gemma3"])
def test_rows_and_packed_rows_read_alike(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    packed, encoder = build(tiny_folders[family])
    rows, _ = build(tiny_folders[family], layout="rows")
    batch = pack_groups(in_turn(encoder, groups))
    with torch.no_grad():
        left, right = packed(batch), rows(batch)
    torch.testing.assert_close(left.logprob, right.logprob, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(left.hidden, right.hidden, rtol=1e-4, atol=1e-5)


def test_one_block_mask_does_it_and_cascade_does_not(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    sdpa, encoder = build(tiny_folders["qwen2_5_vl"], attention="sdpa")
    flex, _ = build(tiny_folders["qwen2_5_vl"], attention="flex")
    batch = pack_groups(in_turn(encoder, groups))
    with torch.no_grad():
        left, right = flex(batch), sdpa(batch)
    torch.testing.assert_close(left.hidden, right.hidden, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="cascade computes branches apart"):
        choose_back_end("cascade", batch, AttentionPattern())
    assert choose_back_end("sdpa", batch, AttentionPattern()) == "sdpa"


@pytest.mark.parametrize("critique", ["full", "none"])
def test_who_stands_before_counts_and_nobody_else(critique: str, tiny_folders: dict[str, Path]) -> None:
    """The first is read as it is alone; a later text changes nothing before it, an earlier one all behind it."""
    model, encoder = build(tiny_folders["llava_onevision"], critique)
    _, apart = build(tiny_folders["llava_onevision"], critique, "apart")
    texts = ["a red circle", "a red square", "no"]

    def hidden(encoder: Encoder, *texts: str) -> Tensor:
        group = PreferenceGroup("one", "what is in the picture ?", responses(*texts), (image(60, 90),))
        with torch.no_grad():
            return model(pack_groups([encoder(group)])).hidden

    read, alone = hidden(encoder, *texts), hidden(apart, *texts)
    torch.testing.assert_close(read[0], alone[0], rtol=1e-4, atol=1e-5)
    assert (read[1:] - alone[1:]).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(hidden(encoder, "a red circle", "a red square", "yes yes")[:2], read[:2])
    changed = (hidden(encoder, "a red circle", "blue", "no") - read).abs().amax(1)
    assert changed[0] < 1e-5 and changed[1:].min() > 1e-3
    assert torch.equal(hidden(encoder, "no"), hidden(apart, "no")), "one response is read as it always was"


def test_critiques_of_others_are_not_seen(tiny_folders: dict[str, Path]) -> None:
    model, encoder = build(tiny_folders["qwen2_5_vl"])
    one = PreferenceGroup("one", "what ?", responses("a red circle", "a blue square"))
    other = PreferenceGroup(
        "one", "what ?", tuple(type(r)(r.text, rank=r.rank, critiques={"full": c}) for r, c in zip(
            one.responses, ("quite another verdict", one.responses[1].critiques["full"]), strict=True))
    )  # fmt: skip
    with torch.no_grad():
        left, right = (model(pack_groups([encoder(group)])) for group in (one, other))
    torch.testing.assert_close(left.hidden[1], right.hidden[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left.logprob[1], right.logprob[1], rtol=2e-6, atol=2e-5)
    assert (left.hidden[0] - right.hidden[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_written_behind_contexts_as_the_stock_model_writes(
    family: str, num_samples: int, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """All critiques of a query side by side, each behind the contexts up to its own, as by stock `generate`."""
    model, encoder = build(tiny_folders[family])
    rows, _ = build(tiny_folders[family], layout="rows")
    contexts = [in_order(encoder.context(group), ORDERS[group.key]) for group in groups]
    asked = {"max_new_tokens": 5, "end_tokens": encoder.end_tokens, "num_samples": num_samples}
    packed, stock = (generate(each, contexts, **asked) for each in (model, rows))
    assert [[one.ids for one in own] for own in packed] == [[one.ids for one in own] for own in stock]
    alone = generate(model, contexts[1:2], **asked)
    assert [one.ids for one in alone[0]] == [one.ids for one in packed[1]]
