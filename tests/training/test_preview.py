"""`plan=true`: what is predicted from the index and the configuration is what training then does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stand_ins.small_data import draw_group
from stand_ins.tiny_models import image

from mmrlhf.chain.order import Node
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.runtime import Runtime
from mmrlhf.chain.store import Store
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.plan import micro_batches
from mmrlhf.feed.selection import Selection
from mmrlhf.feed.weights import Mixing
from mmrlhf.inference.passes import CACHE_PER_BUDGET
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.cache import build_cache
from mmrlhf.models.families import positions_for
from mmrlhf.models.footprint import footprint
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone, load_config
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import sft
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate
from mmrlhf.training import preview, preview_table, ranks
from mmrlhf.training.chain_preview import preview_chain
from mmrlhf.training.settings import Schedule, TrainSettings
from mmrlhf.types import Response

SCHEDULE = Schedule(epochs=2.0, groups_per_step=4, token_budget=300, holdout=0.3)


def look_ahead(shards: Path, policy: Path, **changes: object) -> preview.Preview:
    options: dict[str, Any] = {"template": AnswerTemplate(), "ranks": preview.Ranks(), **changes}
    training = TrainSettings(schedule=options.pop("schedule", SCHEDULE), optim=options.pop("optim", OptimSettings()))
    return preview.preview_stage(shards=shards, checkpoint=policy, training=training, **options)


def test_groups_pairs_and_steps_are_those_of_the_run(tmp_path: Path, small_shards: Path, small_policy: Path) -> None:
    found = look_ahead(small_shards, small_policy)
    index = Index.load(small_shards)
    rows = index.split("train", SCHEDULE.holdout)
    assert found.groups == len(rows) and found.pairs == sum(index.entries[int(row)].num_pairs for row in rows)
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu", devices=1), loggers=lambda *_: [], progress=False)
    training = TrainSettings(schedule=SCHEDULE, optim=OptimSettings(lr=1e-4))
    summary = sft.run(tmp_path, shards=small_shards, policy=small_policy, training=training, runtime=runtime)
    assert found.steps == summary["steps"]


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": Selection(modalities=["image"])},
        {"selection": Selection(responses=(3, None)), "limit": 5},
        {"mixing": Mixing(balance=["modality"])},
        {"max_steps": 1},
    ],
    ids=["images", "limit", "balanced", "max_steps"],
)
def test_an_epoch_is_planned_as_it_is_trained(
    changes: dict[str, Any], tmp_path: Path, small_shards: Path, small_policy: Path
) -> None:
    """Filters, mixtures and limits count; what the run itself reports about its data is the same."""
    schedule = replace(SCHEDULE, groups_per_step=2, **changes)
    found = look_ahead(small_shards, small_policy, schedule=schedule)
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu", devices=1), loggers=lambda *_: [], progress=False)
    training = TrainSettings(schedule=schedule, optim=OptimSettings(lr=1e-4))
    summary = sft.run(tmp_path, shards=small_shards, policy=small_policy, training=training, runtime=runtime)
    assert (found.groups, found.steps) == (summary["data"]["groups_per_epoch"], summary["steps"])
    whole = look_ahead(small_shards, small_policy)
    assert (found.groups, found.pairs, found.text_tokens) != (whole.groups, whole.pairs, whole.text_tokens) or (
        found.steps < whole.steps
    )


def test_what_will_not_fit_is_in_the_table(tmp_path: Path, small_policy: Path, capsys) -> None:
    """A long prompt and a long response: counted with their keys, and the long prompt is no part of the plan."""
    groups = [draw_group(number) for number in range(6)]
    groups[1] = replace(groups[1], prompt="red " * 400)
    groups[2] = replace(groups[2], responses=(Response("blue " * 400, 1), *groups[2].responses[1:]))
    write_shards(groups, tmp_path, max_groups_per_shard=5)
    training = TrainSettings(ModelSettings(max_tokens=200), schedule=replace(SCHEDULE, holdout=0.0))
    found = preview.preview_stage(
        shards=tmp_path, checkpoint=small_policy, training=training, template=AnswerTemplate(), ranks=preview.Ranks()
    )
    assert (found.groups, found.preflight.too_long, list(found.preflight.cut)) == (5, ["query-1"], ["query-2"])
    preview_table.show_previews({"sft": found})
    screen = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 queries will not fit: query-1" in screen and "1 of 6 queries will be cut: query-2" in screen
    assert preview_table.as_record(found)["preflight"]["too_long"]["queries"] == 1


def test_a_frozen_copy_and_a_second_forward_take_memory(small_shards: Path, small_policy: Path) -> None:
    alone, copied, twice = (
        look_ahead(small_shards, small_policy, **changes).memory
        for changes in ({}, {"frozen_copy": True}, {"forwards": 2})
    )
    assert copied["parameters"] == 2 * alone["parameters"] and copied["optimizer"] == alone["optimizer"]
    assert alone["activations"] < twice["activations"] < 2 * alone["activations"]


def test_it_fits_only_with_the_reserve(small_shards: Path, small_policy: Path) -> None:
    """Ranks on a machine without GPUs share its memory, and the estimate leaves out temporaries."""
    found = look_ahead(small_shards, small_policy)
    needed = found.memory["total"]
    assert [replace(found, device_bytes=room).fits for room in (1.2 * needed, 1.3 * needed, None)] == [
        False,
        True,
        None,
    ]
    less = replace(found, device_bytes=int(2 * needed), host_bytes=int(found.host["loading"]) - 1)
    assert less.fits is False and replace(less, host_bytes=int(found.host["loading"]) + 1).fits


def test_a_smaller_budget_is_advised_only_where_a_micro_batch_holds_several_queries(
    tmp_path: Path, small_shards: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing at all where it fits; a budget of one token leaves every query a micro-batch of its own."""
    on_cpu = {"ranks": preview.Ranks(accelerator="cpu")}
    assert look_ahead(small_shards, small_policy, **on_cpu).smaller == ""
    monkeypatch.setattr(ranks, "MEMINFO", tmp_path / "meminfo")
    ranks.MEMINFO.write_text("MemTotal: 1 kB")
    several = look_ahead(small_shards, small_policy, **on_cpu)
    assert several.fits is False and "model.token_budget below 300" in several.smaller
    alone = look_ahead(small_shards, small_policy, schedule=replace(SCHEDULE, token_budget=1), **on_cpu)
    assert "token_budget" not in alone.smaller and "gradient_checkpointing" in alone.smaller


def test_tokens_are_close_and_the_budget_is_kept(small_shards: Path, small_policy: Path) -> None:
    """Estimates aim a tenth above the truth; micro-batches that they fill hold no more tokens than they may."""
    backbone, processor = load_backbone(small_policy, ModelSettings())
    encoder = Encoder(processor, template=AnswerTemplate(), positions=positions_for(backbone))
    dataset = GroupDataset(Index.load(small_shards), encoder)
    rows = dataset.index.split("train", SCHEDULE.holdout)
    dataset.calibrate(rows)
    estimated, true = [dataset.cost(row) for row in rows], [dataset[row].num_tokens for row in rows]
    assert 1.0 < sum(estimated) / sum(true) < 1.25
    for budget in range(max(true), sum(true), 40):
        bins = micro_batches(estimated, token_budget=budget, world_size=1)
        assert all(sum(true[i] for i in members) <= budget for members in bins if len(members) > 1)
    found = look_ahead(small_shards, small_policy)
    assert found.text_tokens + found.visual_tokens == sum(estimated)


def test_visual_tokens_are_the_encoders(small_shards: Path, small_policy: Path) -> None:
    """Pictures of the drawn queries have the size of the tower, so the estimate is exact."""
    backbone, processor = load_backbone(small_policy, ModelSettings())
    encoder = Encoder(processor, template=AnswerTemplate(), positions=positions_for(backbone))
    index = Index.load(small_shards)
    image_token = backbone.config.image_token_id
    visual = sum(
        int((encoder(index.read(int(row))).prefix_ids == image_token).sum())
        for row in index.split("train", SCHEDULE.holdout)
    )
    found = look_ahead(small_shards, small_policy)
    # The estimate of a group also counts the few tokens of the turn that its pictures stand in.
    assert visual <= found.visual_tokens <= visual + 16 * found.groups


def test_more_ranks_make_fewer_micro_batches_and_share_the_language_model(
    small_shards: Path, small_policy: Path
) -> None:
    one = look_ahead(small_shards, small_policy)
    two = look_ahead(small_shards, small_policy, ranks=preview.Ranks(2, 2, sharing=2))
    assert two.micro_batches_per_step <= one.micro_batches_per_step
    assert 0.5 < two.memory["parameters"] / one.memory["parameters"] < 1
    assert two.memory["optimizer"] < one.memory["optimizer"]


def test_shards_on_the_host_are_no_memory_of_the_device(small_shards: Path, small_policy: Path) -> None:
    """What leaves the device, with gradients and optimizer state, is on the host."""
    ranks = preview.Ranks(2, 2, sharing=2, split=True, accelerator="cpu")
    apart, here = (
        look_ahead(small_shards, small_policy, ranks=replace(ranks, offloaded=offloaded)) for offloaded in (True, False)
    )
    assert apart.memory["activations"] == here.memory["activations"] and here.host["shards"] == 0
    split = footprint(small_policy, ModelSettings()).trainable_sharded
    assert apart.memory["optimizer"] == here.memory["optimizer"] - 8 * split / 2
    assert apart.host["shards"] == 16 * split / 2
    assert apart.memory["parameters"] == here.memory["parameters"] - 4 * split / 2
    assert apart.memory["gradients"] < here.memory["gradients"]
    room = int(preview.RESERVE * apart.memory["total"]) + 1
    assert not replace(apart, device_bytes=room).fits, "on a CPU the host is the device"
    assert replace(apart, device_bytes=room, on_host=False).fits
    assert replace(apart, device_bytes=room + int(apart.host["shards"]) + 1).fits


def test_a_frozen_copy_is_whole_on_every_rank(small_shards: Path, small_policy: Path) -> None:
    ranks = preview.Ranks(2, 2, sharing=2, split=True)
    alone, copied = (look_ahead(small_shards, small_policy, ranks=ranks, frozen_copy=copy) for copy in (False, True))
    whole = footprint(small_policy, ModelSettings()).whole_bytes
    assert copied.memory["parameters"] - alone.memory["parameters"] == whole
    assert copied.host["loading"] == 2 * whole == 2 * alone.host["loading"]


def test_eight_bits_of_optimizer_state_are_in_the_plan(small_shards: Path, small_policy: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = look_ahead(small_shards, small_policy).memory["optimizer"]
    compact = look_ahead(small_shards, small_policy, optim=OptimSettings(name="adamw_8bit")).memory["optimizer"]
    assert compact == pytest.approx(plain * 2.03125 / 8)


def test_scoring_is_predicted_beside_a_reward_model(small_shards: Path, small_policy: Path) -> None:
    """Keys and values of what a portion holds, and parameters; nothing where no critique is written."""
    critiques = look_ahead(small_shards, small_policy, template=CritiqueTemplate())
    assert look_ahead(small_shards, small_policy).scoring is None and critiques.scoring is not None
    cache = build_cache(load_config(small_policy).get_text_config())
    model = PackedModel(load_backbone(small_policy, ModelSettings())[0], ModelSettings())
    positions = torch.arange(10)[None, None]
    with torch.no_grad():
        model.extend(cache, torch.zeros(1, 10, dtype=torch.int64), positions, torch.ones(1, 10, dtype=torch.int64))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    tokens, layers = CACHE_PER_BUDGET * SCHEDULE.token_budget, len(cache.layers)
    assert critiques.scoring["cache"] == held / 10 * tokens * (1 + 1 / layers)
    assert critiques.scoring["parameters"] == 4 * sum(p.numel() for p in model.parameters())


def test_a_chain_is_previewed_without_training(
    tmp_path: Path, small_shards: Path, small_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards that are there are enough; a checkpoint still to be trained looks like the one it starts from."""
    settings, trains = {"training": TrainSettings(schedule=SCHEDULE)}, {"training": {}}
    chain = [
        # a pass over all data that no training stage's shards or checkpoint come from
        Node("reference", "m.run", {"shards": str(small_shards), "policy": str(small_policy)}, ()),
        Node("sft", "m.run", {"shards": str(small_shards), "policy": str(small_policy), **trains}, ()),
        Node("mmdpo", "m.run", {"shards": str(small_shards), "policy": "stage:sft/model", **trains}, ("sft",)),
        Node("late", "m.run", {"shards": "stage:mmdpo/x", "policy": str(small_policy), **trains}, ("mmdpo",)),
    ]

    def never(call: object) -> dict:
        raise AssertionError("nothing may run")

    runner = Runner(Store(tmp_path), never, runtime={"trainer": {"devices": 1}}, work=tmp_path)
    found = preview_chain(chain, runner, make=lambda node: settings)
    assert list(found) == ["sft", "mmdpo", "late"]
    assert found["sft"] == found["mmdpo"] == look_ahead(small_shards, small_policy)
    assert isinstance(found["late"], str)
    preview_table.show_previews(found)
    screen = capsys.readouterr().out
    assert "micro-batches per step" in screen and "fits" in screen and "late" in screen


def test_pictures_count_at_their_own_size(tmp_path: Path) -> None:
    """900 tokens of 28 x 28 pixels, not the 925 of the rounded sizes by which training fills its micro-batches."""
    policy, shards = tmp_path / "policy", tmp_path / "shards"
    size = TinySize(hidden=16, layers=1, heads=2, vision_hidden=16, vision_layers=1, published=True)
    build_tiny("qwen2_5_vl", policy, texts=["red blue"] * 20, size=size)
    write_shards(
        [replace(draw_group(number), prompt="what is it ?", media=(image(1000, 700),)) for number in range(4)], shards
    )
    found = look_ahead(shards, policy, schedule=replace(SCHEDULE, token_budget=4000, holdout=0.0))
    assert 4 * 900 <= found.visual_tokens <= 4 * (900 + 16)
    assert found.largest_micro_batch <= found.visual_tokens + found.text_tokens
    backbone, processor = load_backbone(policy, ModelSettings())
    encoder = Encoder(processor, template=AnswerTemplate(), positions=positions_for(backbone))
    entries = list(Index.load(shards).entries)
    assert encoder.visual.common_sizes(entries, most=0) == [encoder.visual.estimate(entry) for entry in entries]
    assert encoder.visual.estimate(entries[0]) == encoder.visual.common_sizes(entries)[0] + 25
