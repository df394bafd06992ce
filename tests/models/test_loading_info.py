"""A checkpoint whose weights are not exactly its model's is refused, and the error says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stand_ins import broken_checkpoints as broken
from stand_ins.tiny_models import AVAILABLE
from transformers import AutoModelForImageTextToText

from mmrlhf.errors import HubError, ModelError
from mmrlhf.models.load import check_folder, load_backbone
from mmrlhf.models.loading_info import DIALECTS, find_dialect
from mmrlhf.models.settings import ModelSettings

SEVERAL = [family for family in ("llava_onevision", "qwen2_5_vl", "gemma3", "internvl") if family in AVAILABLE]
TOWER = ("vision_tower", "visual.blocks", "visual.patch_embed")
PROJECTOR = ("multi_modal_projector", "visual.merger", "connector")

# name of the fault -> what is done to the tensors, what the error says
FAULTS: dict[str, tuple[Callable[[broken.Tensors], broken.Tensors], str]] = {
    "layer": (broken.without(".layers.1."), r"\d+ of \d+ missing[^:]*: \S*\.layers?\.1\."),
    "tower": (broken.without(*TOWER), r"missing, all in model\.(vision_tower|visual):"),
    "projector": (broken.without(*PROJECTOR), r"missing, all in model\.(multi_modal_projector|visual):"),
    "embedding": (broken.without("embed_tokens"), r"missing: .*embed_tokens\.weight"),
    "half": (broken.halved, r"\d+ of \d+ missing: \S+, \S+, \S+, \S+ and \d+ more"),
    "ddp": (broken.renamed("module."), r"the prefix `module\.`[\s\S]*wrapped\.module\.save_pretrained"),
    "compiled": (broken.renamed("_orig_mod."), r"torch\.compile"),
    "peft": (broken.as_peft_saves, r"not merged[\s\S]*merge_and_unload"),
    "own": (broken.renamed("backbone."), r"training framework's own checkpoint"),
    "nothing": (broken.renamed("something.else."), r"\d+ unknown: something\.else\."),
    "shape": (broken.reshaped("layers.0.mlp.up_proj"), r"1 of another shape: \S+ is \(129, 64\) and not \(128, 64\)"),
    "extra": (broken.with_extra("model.extra.weight"), r"1 unknown: model\.\S*extra\.weight"),
    "empty": (lambda tensors: {}, r"(\d+) of \1 missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("family", "look"), [*((family, load_backbone) for family in SEVERAL), (SEVERAL[0], check_folder)]
)
def test_other_weights_are_refused(
    family: str, fault: str, look: Callable[..., object], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each fault is found by loading and, without the weights, by a look at the folder."""
    change, said = FAULTS[fault]
    folder = broken.rewrite(broken.copy_checkpoint(tiny_folders[family], tmp_path / "model"), change)
    with pytest.raises(ModelError, match=said) as caught:
        look(folder, ModelSettings())
    assert caught.value.where == folder and caught.value.fix


@pytest.mark.parametrize("family", AVAILABLE)
def test_whole_checkpoints_load_in_one_file_and_in_shards(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Tied weights may be left out; the weights are those of the file."""
    folder = broken.in_shards(broken.copy_checkpoint(tiny_folders[family], tmp_path / "model"))
    check_folder(folder, ModelSettings())
    ours, _ = load_backbone(folder, ModelSettings())
    stock = AutoModelForImageTextToText.from_pretrained(tiny_folders[family])
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in stock.state_dict().items())


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut": (broken.cut, r"damaged or cut off[\s\S]*\d+ bytes"),
    "header cut": (lambda folder: broken.cut(folder, 0.001), "damaged or cut off"),
    "absent shard": (lambda folder: broken.in_shards(folder, present=1), r"1 of 2 absent: model-00002-of-00002"),
    "pickled": (broken.pickled, r"pytorch_model\.bin[\s\S]*save_pretrained"),
}


@pytest.mark.parametrize("look", [load_backbone, check_folder], ids=["load", "check"])
@pytest.mark.parametrize("fault", FILES)
def test_damaged_files_are_named(
    fault: str, look: Callable[..., object], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Files that are cut, absent or of another kind, before any of them is read."""
    change, said = FILES[fault]
    folder = change(broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model"))
    with pytest.raises(ModelError, match=said):
        look(folder, ModelSettings())


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../elsewhere.safetensors"}}', "\xff"]
)
def test_an_index_that_is_none(content: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Broken JSON, another layout, a place outside of the folder, another encoding."""
    folder = broken.in_shards(broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match="index"):
        load_backbone(folder, ModelSettings())


def test_adapters_beside_a_config(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Their base is what they name; where that cannot be had, it is named, and nothing else is loaded in its place."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    config = (folder / "config.json").read_text()
    broken.adapters_only(folder)
    (folder / "config.json").write_text(config)
    for look in (load_backbone, check_folder):
        with pytest.raises(HubError, match="reachable on the hub: a/b"):
            look(folder, ModelSettings())


@pytest.mark.parametrize("name", ["qweight", "weight_packed", "weight.absmax"])
def test_quantised_weights_are_called_so(name: str) -> None:
    """By the names that the usual tools give their parts."""
    found = find_dialect([f"model.layers.0.self_attn.q_proj.{name}"])
    assert found is not None and "quantised" in found.written_by


def test_no_family_writes_a_dialect(tiny_folders: dict[str, Path]) -> None:
    """A pattern that a stock model's own names fit would give every error the wrong reason."""
    for family, folder in tiny_folders.items():
        backbone, _ = load_backbone(folder, ModelSettings())
        assert find_dialect(backbone.state_dict()) is None, family
    assert len({dialect.written_by for dialect in DIALECTS}) == len(DIALECTS)


def test_configs_that_are_none(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Broken JSON, no family, an unknown one, sizes that are no numbers."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    good = json.loads((folder / "config.json").read_text())
    family = {"model_type": "mixture_of_everything"}
    for content in ("{", '"text"', "{}", json.dumps(good | family), json.dumps(good | {"text_config": 3})):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=str(folder)):
            load_backbone(folder, ModelSettings())
