"""Loading refuses what it cannot use, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_ins import broken_checkpoints as broken
from stand_ins.tiny_models import AVAILABLE
from transformers import AutoConfig

from mmrlhf.errors import ConfigError, HubError, ModelError
from mmrlhf.models.families import check_packable, language_layers, parts
from mmrlhf.models.load import check_folder, context_length, load_backbone
from mmrlhf.models.random_checkpoints import build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.trainable import set_trainable


def test_another_family_is_refused(tiny_folders: dict[str, Path]) -> None:
    """The error names both families and the setting."""
    with pytest.raises(ModelError, match=r"'internvl'[\s\S]*model\.settings\.family"):
        load_backbone(tiny_folders["internvl"], ModelSettings(family="llava_onevision"))


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    """A folder that holds something else."""
    with pytest.raises(ModelError, match="no config.json"):
        load_backbone(tmp_path, ModelSettings())


def test_unreachable_hub_says_which_folder_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a hub id gives one error that names it, whichever setting it came by, with the way out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="give its folder in place of this name") as caught:
        load_backbone("someone/not-a-model", ModelSettings())
    assert caught.value.where == "someone/not-a-model"


@pytest.mark.parametrize("name", ["precision", "layout", "vision", "projector", "language"])
def test_unknown_setting(name: str) -> None:
    """Every choice is checked when the settings are made."""
    with pytest.raises(ConfigError) as caught:
        ModelSettings(**{name: "sideways"})
    assert caught.value.argument == name


def test_tiny_family_without_recipe(tmp_path: Path) -> None:
    """Names the families there are."""
    with pytest.raises(ConfigError, match="llava_onevision"):
        build_tiny("no_such_family", tmp_path, texts=["a"])


@pytest.mark.parametrize("family", AVAILABLE)
def test_parts_cover_every_parameter_once(family: str, tiny_folders: dict[str, Path]) -> None:
    """Vision, projector and language are disjoint, none is empty, and freezing follows them."""
    backbone, _ = load_backbone(tiny_folders[family], ModelSettings())
    found = parts(backbone)
    assert all(found.values())
    assert sum(len(part) for part in found.values()) == len(list(backbone.parameters()))
    set_trainable(backbone, ModelSettings(vision="frozen", projector="full", language="frozen"))
    assert not any(p.requires_grad for p in found["vision"] + found["language"])
    assert all(p.requires_grad for p in found["projector"])
    assert len(language_layers(backbone)) == 2
    assert check_packable(backbone) is None


def test_recurrent_layers_are_refused_for_packed_rows(tiny_folders: dict[str, Path]) -> None:
    """A mask over tokens means nothing to layers that carry a state along."""
    backbone, _ = load_backbone(tiny_folders["llava_onevision"], ModelSettings())
    backbone.config.get_text_config().layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention" in (check_packable(backbone) or "")


def test_the_context_is_the_checkpoint_s_unless_it_is_set(tiny_folders: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(tiny_folders["qwen2_5_vl"])
    assert context_length(ModelSettings(), config) == config.get_text_config().max_position_embeddings > 0
    assert context_length(ModelSettings(max_tokens=77), config) == 77
    silent = SimpleNamespace(model_type="other", get_text_config=SimpleNamespace)
    with pytest.raises(ModelError, match="model.settings.max_tokens"):
        context_length(ModelSettings(), silent)


def test_capped_logits_are_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """The head alone is read here: of such a model every log-probability would be another than the stock forward's."""
    folder = broken.copy_checkpoint(tiny_folders["gemma3"], tmp_path / "model")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    broken.edit_json(folder / "config.json", text_config={**text, "final_logit_softcapping": 30.0})
    for look in (load_backbone, check_folder):
        with pytest.raises(ModelError, match=r"final_logit_softcapping=30"):
            look(folder, ModelSettings())
