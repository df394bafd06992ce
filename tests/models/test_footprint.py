"""What a model needs, counted from its configuration, is what it has and what a step of it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.small_data import draw_group
from stand_ins.tiny_models import image
from transformers import AutoModelForImageTextToText

from benchmarks.live_tensors import LiveTensors
from benchmarks.ours import OurStep
from mmrlhf.models.families import base_model, language_layers, parts, vision_layers
from mmrlhf.models.footprint import footprint
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.trainable import set_trainable
from mmrlhf.tokens.packing import pack_groups


def test_frozen_weights_in_bf16_and_a_large_tower_are_shared(small_policy: Path) -> None:
    """As `shard_model` splits them; while pictures are encoded, all of the tower is there."""
    settings = ModelSettings(weights="bf16", precision="bf16", language="lora", lora_rank=4, projector="frozen")
    backbone, _ = load_backbone(small_policy, settings)
    set_trainable(backbone, settings)
    of_part = parts(backbone)
    halves = [2 * p.numel() for p in of_part["language"] if p.dtype is torch.bfloat16]
    found = footprint(small_policy, settings)
    assert found.compact_sharded == sum(halves) < found.compact and found.tower == 0
    one, four = (found.predict(row_tokens=9, label_tokens=3, num_shards=n)["parameters"] for n in (1, 4))
    assert one - four == pytest.approx(0.75 * (sum(halves) + 4 * found.sharded))
    split = footprint(small_policy, settings, large_tower=1)
    layers = [p for layer in vision_layers(backbone) for p in layer.parameters() if p.ndim >= 2]
    tower = sum(p.numel() * p.element_size() for p in layers)
    assert split.tower == tower > 0
    with_tower = split.predict(row_tokens=9, label_tokens=3, num_shards=4)["parameters"]
    assert four - with_tower == pytest.approx(0.75 * tower)
    huge = replace(split, tower=1e12)
    assert huge.predict(row_tokens=9, label_tokens=3, num_shards=4)["activations"] == 1e12
    assert huge.predict(row_tokens=9, label_tokens=3, num_shards=1)["activations"] < 1e12


@pytest.mark.parametrize(
    "settings",
    [ModelSettings(), ModelSettings(language="lora", lora_rank=4, projector="frozen"), ModelSettings(vision="full")],
    ids=["full", "lora", "vision"],
)
def test_parameters_are_those_of_the_model(settings: ModelSettings, small_policy: Path) -> None:
    found = footprint(small_policy, settings)
    model = PackedModel(load_backbone(small_policy, settings)[0], settings)
    every = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.sharded + found.replicated == every
    assert found.trainable_sharded + found.trainable_replicated == trainable
    memory = found.predict(row_tokens=100, label_tokens=10, num_shards=1, accumulates=True)
    assert memory["gradients"] == 4 * trainable and memory["optimizer"] == 8 * trainable
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_saved_bytes_are_what_a_real_backward_keeps(small_policy: Path, precision: str) -> None:
    """Within a tenth of what autograd saves in the language model on real tensors; less when layers are recomputed.

    In bf16 the residual stream stays float32 (docs/precision.md), so what is kept between layers is no smaller.
    """
    settings = ModelSettings(precision=precision)
    found = footprint(small_policy, settings)
    model = PackedModel(load_backbone(small_policy, settings)[0], settings).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Autocast's copies of weights are counted apart (`Footprint.predict`).
        if tensor.untyped_storage().data_ptr() not in weights and length in tensor.shape:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    length, width = 512, model.backbone.config.get_text_config().hidden_size
    base: Any = base_model(model.backbone)
    states = torch.zeros(1, length, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(settings, model.device):
        base.language_model(inputs_embeds=states, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / length
    assert len(language_layers(model.backbone)) == 2
    assert found.saved_per_token == pytest.approx(measured, rel=0.1)
    recomputed = footprint(small_policy, replace(settings, gradient_checkpointing=True))
    assert recomputed.saved_per_token < measured / 4
    assert recomputed.saved_per_token >= 4 * width * recomputed.layers, "the states between layers, in float32"


@pytest.fixture(scope="module")
def wider_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers and vocabulary weigh more than its tower, as in models that people train."""
    folder = tmp_path_factory.mktemp("wider")
    size = TinySize(hidden=128, layers=4, vocabulary=2000, vision_layers=1)
    build_tiny("llava_onevision", folder, texts=["red blue green square circle"] * 20, size=size)
    # a trained tokenizer is smaller than asked for
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.resize_token_embeddings(4000)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "accumulates"),
    [
        ({}, False),
        ({}, True),
        ({"logprob_chunk": 32}, False),
        ({"gradient_checkpointing": True}, False),
        ({"language": "lora", "lora_rank": 8, "projector": "frozen"}, False),
        ({"language": "lora", "lora_rank": 8, "projector": "frozen", "precision": "bf16", "weights": "bf16"}, False),
    ],
    ids=["full", "accumulated", "chunks", "checkpointing", "lora", "lora in bf16"],
)
def test_a_steps_memory_is_predicted_within_a_tenth(
    changes: dict[str, Any], accumulates: bool, wider_policy: Path
) -> None:
    """Of the tensors that live at once in a step: when backward begins, or when it ends with all gradients."""
    settings = ModelSettings(**changes)
    ours = OurStep(wider_policy, settings)
    groups = [replace(draw_group(n), prompt="what is it ?", media=(image(56, 56),)) for n in range(3)]
    long = [replace(g, responses=tuple(replace(r, text=" red" * 20) for r in g.responses)) for g in groups]
    encoded = [ours.encoder(group) for group in long]
    batch = pack_groups(encoded)
    ours.step([batch])
    state = [value for each in ours.optimizer.state.values() for value in each.values()]
    if accumulates:
        ours.backward(batch)
    held = [*ours.model.parameters(), *[p.grad for p in ours.model.parameters() if p.grad is not None], *state]
    with LiveTensors(held) as live:
        ours.step([batch])
    predicted = footprint(wider_policy, settings).predict(
        row_tokens=len(encoded) * max(group.num_tokens for group in encoded),
        label_tokens=len(batch.label_ids),
        visual_tokens=int((batch.input_ids == ours.model.backbone.config.image_token_id).sum()),
        num_groups=len(batch.keys),
        accumulates=accumulates,
        num_shards=1,
    )
    assert predicted["total"] == pytest.approx(live.peak, rel=0.1)


def test_adapters_read_float32_in_bf16(small_policy: Path) -> None:
    """What is there beside what backward keeps while the MLP's last map is adapted, as one forward of it makes it."""
    settings = ModelSettings(language="lora", lora_rank=4, projector="frozen", precision="bf16", weights="bf16")
    model = load_backbone(small_policy, settings)[0]
    set_trainable(model, settings)
    adapted: Any = language_layers(model)[0].mlp.down_proj
    given = torch.ones(500, adapted.in_features, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor) == len(given):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        autocast(settings, torch.device("cpu")),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        LiveTensors([given, *adapted.parameters()]) as live,
    ):
        adapted(given)
    fixed = sum(p.numel() * p.element_size() for p in adapted.parameters())
    normed = 4 * model.config.get_text_config().hidden_size
    measured = (live.peak - fixed - sum(kept.values())) / len(given) + normed
    found = footprint(small_policy, settings).adapter_per_token
    assert found == pytest.approx(measured, rel=0.1)
    assert footprint(small_policy, replace(settings, precision="float32", weights="float32")).adapter_per_token == 0
    assert footprint(small_policy, ModelSettings(precision="bf16")).adapter_per_token == 0
