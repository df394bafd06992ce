"""Teaching a tiny tower to see: its patches tell what their cell holds, and nothing but the tower changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrlhf.errors import ConfigError
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.shapes.tower import TowerSettings, pretrain_tower
from mmrlhf.shapes.world import write_world
from mmrlhf.types import Media, PreferenceGroup, Response

SIZE = TinySize(hidden=32, layers=1, heads=2, vision_hidden=48, vision_layers=1, image=48, patch=12, crops=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    build_tiny("llava_onevision", folder / "model", texts=["list all objects ."], size=SIZE)
    write_world(folder / "world", num_groups=240, seed=0, kind="warmup")
    return folder


@pytest.fixture(scope="module")
def groups(folder: Path) -> list[PreferenceGroup]:
    return list(_groups(folder / "world"))


def _groups(root: Path) -> Iterator[PreferenceGroup]:
    for line in (root / "data.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "image" in row:
            path = root / row["image"]
            media = (Media("image", (path.name,), (path.read_bytes(),)),)
            yield PreferenceGroup(row["id"], row["prompt"], (Response("a"),), media, meta=row["meta"])


def _load(folder: Path) -> tuple:
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    return model, AutoProcessor.from_pretrained(folder / "model")


def test_patches_tell_what_their_cell_holds(folder: Path, groups: list[PreferenceGroup]) -> None:
    """Far above the commonest content (a quarter of cells is empty), on pictures that it did not train on."""
    model, processor = _load(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy = pretrain_tower(model, processor, groups, TowerSettings(steps=120, pictures=48), progress=False)
    assert accuracy > 0.8
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(".vision_tower." in name for name in changed)
    untaught, _ = _load(folder)
    assert pretrain_tower(untaught, processor, groups, TowerSettings(steps=1), progress=False) < 0.5


def test_a_seed_fixes_it(folder: Path, groups: list[PreferenceGroup]) -> None:
    found = []
    for seed in (1, 1, 2):
        model, processor = _load(folder)
        pretrain_tower(model, processor, groups, TowerSettings(steps=3), seed=seed, progress=False)
        found.append(model.base_model.vision_tower.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_data_without_a_known_scene_is_refused(folder: Path, groups: list[PreferenceGroup]) -> None:
    model, processor = _load(folder)
    with pytest.raises(ConfigError, match="cannot be pre-trained"):
        pretrain_tower(model, processor, [replace(groups[0], meta={})], TowerSettings(), progress=False)
