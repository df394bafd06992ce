"""Kept features of pictures change nothing, are computed once, and are found again by what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import assert_same, build, gradients
from stand_ins.tiny_models import AVAILABLE, formed_groups, image, responses

from mmrlhf.errors import ConfigError, DataError, ModelError
from mmrlhf.models.families import vision_modules
from mmrlhf.models.features import VisionFeatures, bytes_per_token
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

FROZEN: dict[str, Any] = {"vision": "frozen", "projector": "frozen"}
PICTURE = PreferenceGroup("k", "what ?", responses("a red circle", "no"), (image(56, 56),))


def with_cache(folder: Path, cache: Path, **settings: Any) -> tuple[PackedModel, Encoder]:
    """A tiny model that keeps its features in `cache`."""
    model, encoder = build(folder, **(FROZEN | settings))
    model.vision_features = VisionFeatures(cache, model.backbone, model.settings)
    return model, encoder


def tower_calls(model: PackedModel) -> list[int]:
    """A list that grows with every call of the tower."""
    calls: list[int] = []
    for tower in vision_modules(model.backbone):
        tower.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("layout", ["packed", "rows"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_kept_features_change_nothing(
    family: str, layout: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """Forward and gradient equal those without files, when they are written and when they are read; then no tower."""
    plain, encoder = build(tiny_folders[family], layout=layout, **FROZEN)
    model, _ = with_cache(tiny_folders[family], tmp_path, layout=layout)
    batch = pack_groups([encoder(group) for group in groups + formed_groups()])
    expected = plain(batch)
    expected_gradients = gradients(plain, expected)
    calls = tower_calls(model)
    written = model(batch)
    torch.testing.assert_close(written.logprob, expected.logprob, rtol=2e-6, atol=2e-5)
    assert_same(gradients(model, written), expected_gradients)
    assert calls and len(list(tmp_path.rglob("*.safetensors"))) == 6  # two of the queries show the same
    calls.clear()
    read = model(batch)
    assert torch.equal(read.logprob, written.logprob) and not calls
    assert_same(gradients(model, read), expected_gradients)


def test_another_model_object_finds_them(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Named by content: the same weights read what others wrote, one group at a time or together."""
    model, encoder = with_cache(tiny_folders["internvl"], tmp_path)
    other, _ = with_cache(tiny_folders["internvl"], tmp_path, language="lora", lora_rank=2)
    second = PreferenceGroup("j", "why ?", responses("b"), (image(56, 56, 1),))
    model(pack_groups([encoder(PICTURE)]))
    model(pack_groups([encoder(second)]))
    other(pack_groups([encoder(second), encoder(PICTURE)]))
    assert other.vision_features is not None and other.vision_features.num_read == 2
    assert other.vision_features.num_written == 0


@pytest.mark.parametrize("change", ["pixels", "tower", "projector", "precision"])
def test_other_features_have_other_names(change: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Another picture, other weights, or another precision never reads what was written before."""
    model, encoder = with_cache(tiny_folders["llava_onevision"], tmp_path)
    model(pack_groups([encoder(PICTURE)]))
    (first,) = tmp_path.rglob("*.safetensors")
    settings = {"precision": "bf16"} if change == "precision" else {}
    other, _ = build(tiny_folders["llava_onevision"], **(FROZEN | settings))
    weights = {name: parameter for name, parameter in other.backbone.named_parameters() if change in name}
    for parameter in weights.values():
        parameter.data[..., :1] += 1e-4
    other.vision_features = VisionFeatures(tmp_path, other.backbone, other.settings)
    media = (image(56, 56, 7),) if change == "pixels" else PICTURE.media
    other(pack_groups([encoder(PreferenceGroup("k", "what ?", PICTURE.responses, media))]))
    (second,) = set(tmp_path.rglob("*.safetensors")) - {first}
    assert (second.parent == first.parent) == (change == "pixels")
    assert (second.name == first.name) == (change != "pixels")


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_what_trains_is_not_kept(part: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.settings\.{part}=full"):
        with_cache(tiny_folders["llava_onevision"], tmp_path, **{part: "full"})


def test_a_family_without_the_argument_is_refused(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = build(tiny_folders["llava_onevision"], **FROZEN)
    monkeypatch.setattr(type(model.backbone.base_model), "forward", lambda self, input_ids=None: None)
    with pytest.raises(ModelError, match="takes no precomputed features"):
        VisionFeatures(tmp_path, model.backbone, model.settings)


def test_a_damaged_file_is_named(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model, encoder = with_cache(tiny_folders["llava_onevision"], tmp_path)
    batch = pack_groups([encoder(PICTURE)])
    model(batch)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=path.name):
        model(batch)


def test_text_alone_keeps_nothing(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model, encoder = with_cache(tiny_folders["gemma3"], tmp_path)
    model(pack_groups([encoder(PreferenceGroup("t", "why ?", responses("a", "b")))]))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("family", AVAILABLE)
def test_their_size_is_known_before(family: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Visual tokens x bytes of a token, but for a file's header."""
    model, encoder = with_cache(tiny_folders[family], tmp_path)
    encoded = encoder(PICTURE)
    model(pack_groups([encoded]))
    (path,) = tmp_path.rglob("*.safetensors")
    tokens = int((encoded.prefix_ids == model.backbone.config.image_token_id).sum())
    assert 0 <= path.stat().st_size - tokens * bytes_per_token(model.backbone.config, ModelSettings().precision) < 500
