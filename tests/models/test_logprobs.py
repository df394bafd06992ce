"""What backward keeps: nothing of a frozen tower, no logits, whatever the head is; and the ways to a reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import assert_same, build, gradients
from stand_ins.head_kinds import KINDS, build_with_head

from benchmarks.equivalence import stock_outputs
from mmrlhf.errors import ConfigError
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.tensors import PackedBatch, ResponseOutputs
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup


def saved_by(model: PackedModel, batch: PackedBatch) -> tuple[list[torch.Tensor], ResponseOutputs]:
    """Every tensor that autograd keeps for the backward of a forward, and the forward's outputs."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(batch)
    return kept, outputs


@pytest.mark.parametrize("changes", [{}, {"language": "lora", "lora_rank": 4}], ids=["full", "lora"])
def test_one_chunk_of_logits_is_kept(
    changes: dict, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """As wide as the vocabulary are, but for the head's own weight, the logits of the last chunk alone."""
    model, encoder = build(tiny_folders["llava_onevision"], logprob_chunk=4, **changes)
    batch = pack_groups([encoder(group) for group in groups])
    kept, _ = saved_by(model, batch)
    vocabulary = model.backbone.config.get_text_config().vocab_size
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    wide = {t.untyped_storage().data_ptr(): t for t in kept if vocabulary in t.shape}
    logits = [len(tensor) for place, tensor in wide.items() if place not in weights]
    assert len(batch.label_ids) > 8 and 0 < sum(logits) <= 4


def test_a_frozen_tower_keeps_nothing(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Between entering and leaving the tower, autograd keeps no tensor; with a tower that trains it does."""
    for vision, expected in (("frozen", False), ("full", True)):
        model, encoder = build(tiny_folders["llava_onevision"], vision=vision)
        kept_before: list[int] = []
        count = [0]
        tower = model.train().backbone.base_model.vision_tower
        tower.register_forward_pre_hook(lambda m, args, c=count, k=kept_before: k.append(c[0]))
        tower.register_forward_hook(lambda m, args, out, c=count, k=kept_before: k.append(c[0]))

        def keep(tensor: torch.Tensor, c: list[int] = count) -> torch.Tensor:
            c[0] += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(pack_groups([encoder(groups[0])]))
        entered, left = kept_before
        assert (left > entered) == expected


def test_bf16_has_float32_log_probabilities(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Log-sum-exp runs in float32: of the very bfloat16 logits that the head gave, the exact one, not a rounded one."""
    model, encoder = build(tiny_folders["llava_onevision"], precision="bf16")
    batch = pack_groups([encoder(group) for group in groups])
    logits: list[torch.Tensor] = []
    model.backbone.get_output_embeddings().register_forward_hook(lambda head, given, found: logits.append(found))
    with torch.no_grad(), autocast(model.settings, torch.device("cpu")):
        found = model(batch)
    given = torch.cat(logits)
    assert given.dtype == torch.bfloat16 and len(given) == len(batch.label_ids) and found.logprob.dtype == torch.float32

    def summed(tokens: torch.Tensor) -> torch.Tensor:
        chosen = tokens.gather(1, batch.label_ids[:, None])[:, 0].double()
        return torch.zeros(batch.num_responses, dtype=torch.float64).index_add(0, batch.label_response, chosen)

    exact = summed(given.double().log_softmax(1))
    torch.testing.assert_close(found.logprob.double(), exact, rtol=1e-6, atol=1e-5)
    rounded = summed(given.log_softmax(1))
    assert (rounded - exact).abs().max() > 1e-3, "a log-sum-exp in bfloat16 would be seen"


@pytest.mark.parametrize("kind", KINDS)
def test_any_head_trains_through_chunks(
    kind: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Log-probabilities and gradients are those of the stock model's own logits, row by row."""
    model, encoder = build_with_head(kind, tiny_folders["qwen2_5_vl"], logprob_chunk=2, vision="frozen")
    head, embedding = model.backbone.get_output_embeddings(), model.backbone.get_input_embeddings()
    assert (head.weight is embedding.weight) == (kind == "tied")
    ours = model(pack_groups([encoder(group) for group in groups]))
    stock = stock_outputs(model, encoder, groups)
    torch.testing.assert_close(ours.logprob, stock.logprob, rtol=2e-6, atol=2e-5)
    assert_same(gradients(model, ours), gradients(model, stock))


def test_a_tied_head_gets_no_adapter_of_its_own(tiny_folders: dict[str, Path]) -> None:
    """It would adapt the embedding, too."""
    with pytest.raises(ConfigError, match="lora_head"):
        build(tiny_folders["qwen2_5_vl"], language="lora", lora_head=True)


def test_adapters_off_and_a_frozen_copy_are_one_reference(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """At initialisation of LoRA: policy, adapters off, and frozen copy; what the table holds is the copy's forward."""
    policy, encoder = build(tiny_folders["internvl"], language="lora", lora_rank=4, projector="frozen")
    copy, _ = build(tiny_folders["internvl"], language="frozen", projector="frozen")
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        table, moving = copy(batch).logprob, policy(batch).logprob
        with policy.adapters_off():
            off = policy(batch).logprob
    torch.testing.assert_close(off, table)
    torch.testing.assert_close(moving, table)
