"""LoRA on each part of a model, and the reference that is the same model with its adapters off."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE, lora_on
from transformers import AutoModelForImageTextToText

from benchmarks.equivalence import stock_outputs
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.models.export import save_policy
from mmrlhf.models.families import parts
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import check_folder, load_backbone
from mmrlhf.models.random_checkpoints import build_tiny
from mmrlhf.models.settings import PARTS, ModelSettings
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.training.settings import TrainSettings, require_storable
from mmrlhf.training.workbench import open_workbench
from mmrlhf.types import PreferenceGroup


@pytest.mark.parametrize("adapted", [("language",), PARTS], ids=["language", "all"])
@pytest.mark.parametrize("family", AVAILABLE)
def test_adapters_off_is_the_base_model(
    family: str, adapted: tuple[str, ...], tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """With trained adapters the policy moves; off, it is the reference; only adapters and what is `full` train."""
    base, encoder = build(tiny_folders[family])
    policy, _ = build(tiny_folders[family], lora_rank=4, **lora_on(family, adapted))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = pack_groups([encoder(group) for group in groups])
    reference = base(batch).logprob
    assert (policy(batch).logprob - reference).abs().max() > 1e-2
    with policy.adapters_off():
        torch.testing.assert_close(policy(batch).logprob, reference)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    projector = {n for n in trained if "project" in n or "merger" in n or "newline" in n}
    assert all("lora_" in n for n in (trained if "projector" in adapted else trained - projector)) and trained


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", AVAILABLE)
def test_each_part_can_have_adapters(
    family: str, part: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """Adapters of one part alone: every one of them gets a gradient, and nothing else does."""
    frozen = dict.fromkeys(PARTS, "frozen")
    if (family, part) == ("gemma3", "projector"):  # a bare matrix
        with pytest.raises(ConfigError, match="no linear map"):
            build(tiny_folders[family], **{**frozen, part: "lora"})
        return
    model, encoder = build(tiny_folders[family], **{**frozen, part: "lora"}, lora_rank=4)
    model.train()
    outputs = model(pack_groups([encoder(group) for group in groups]))
    (outputs.logprob.sum() + outputs.hidden.sum()).backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    own = {id(parameter) for parameter in parts(model.backbone)[part]}
    assert found and all("lora_" in name for name in found)
    assert all(id(dict(model.named_parameters())[name]) in own for name in found)
    ups = {name for name, _ in model.named_parameters() if "lora_B" in name}
    # LLaVA-NeXT takes the tower's features before its last layer
    unreached = {name for name in ups if (family, part) == ("llava_next", "vision") and "layers.2." in name}
    assert ups - found == unreached


def test_adapters_off_needs_adapters(tiny_folders: dict[str, Path]) -> None:
    """Asking a model without adapters for its reference says what to set."""
    model, _ = build(tiny_folders["internvl"])
    with pytest.raises(ModelError, match="language=lora"), model.adapters_off():
        pass


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora_rslora": True, "lora_dropout": 0.1},
    "dora": {"lora_dora": True, "vision": "lora", "vision_lora_rank": 2},
    "nf4": {"weights": "nf4"},
}


@pytest.mark.parametrize(
    ("kind", "family"),
    [("plain", "qwen2_5_vl"), ("rslora", "internvl"), ("dora", "llava_onevision"), ("nf4", "qwen3_vl")],
)
def test_an_adapter_folder_is_peft_s_and_ours(
    kind: str, family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """Plain peft on the stock checkpoint, our own loading, and the merged folder say the same as the trained policy."""
    base = tiny_folders[family]
    chosen = {"projector": "frozen", "language": "lora", "lora_rank": 4, "lora_alpha": 4.0, **KINDS[kind]}
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    policy, encoder = build(base, **chosen)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= torch.linspace(0.8, 1.2, len(parameter))
    policy.eval()
    for as_adapters in (True, False):
        place = tmp_path / ("adapter" if as_adapters else "merged")
        save_policy(
            policy,
            encoder.processor,
            place,
            card={"media": {}},
            dtype=torch.float32,
            base=base,
            as_adapters=as_adapters,
        )
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").glob("*.safetensors")) < 0.5 * sum(
        file.stat().st_size for file in (tmp_path / "merged").glob("*.safetensors")
    )
    batch = pack_groups([encoder(group) for group in groups])
    stock = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), str(tmp_path / "adapter")
    ).eval()
    ranks = {module.r["default"] for name, module in stock.named_modules() if hasattr(module, "lora_A")}
    assert ranks == ({2, 4} if kind == "dora" else {4})
    settings = ModelSettings(layout="rows", projector="frozen", language="frozen")
    plain = stock_outputs(PackedModel(stock.get_base_model(), settings), encoder, groups).logprob
    with torch.no_grad():
        if kind != "nf4":  # there the policy's own base is rounded
            torch.testing.assert_close(policy(batch).logprob, plain, atol=1e-4, rtol=1e-5)
        for place in ("adapter", "merged"):
            again, _ = build(tmp_path / place, language="frozen", projector="frozen")
            torch.testing.assert_close(again(batch).logprob, plain.detach(), atol=1e-4, rtol=1e-5)
    check_folder(tmp_path / "adapter", ModelSettings())


def test_adapters_of_another_base_are_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """By the weights in the place that they name, before anything is loaded; and so is a base that is gone."""
    base = tmp_path / "base"
    shutil.copytree(tiny_folders["internvl"], base)
    policy, encoder = build(base, language="lora", projector="frozen", lora_rank=2)
    folder = tmp_path / "adapter"
    save_policy(policy, encoder.processor, folder, base=base, as_adapters=True)
    load_backbone(folder, ModelSettings())
    for check in (load_backbone, check_folder):
        with pytest.raises(ModelError, match="needs float32 weights"):
            check(folder, ModelSettings(weights="bf16", precision="bf16"))
    build_tiny("internvl", base, texts=["other"] * 20, seed=1)
    for check in (load_backbone, check_folder):
        with pytest.raises(ModelError, match=r"trained on another base[\s\S]*adapter_config.json"):
            check(folder, ModelSettings())
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="base of these adapters is not there"):
        load_backbone(folder, ModelSettings())


def test_an_adapter_folder_holds_adapters_and_nothing_else() -> None:
    lora = ModelSettings(projector="frozen", language="lora")
    require_storable({"training": TrainSettings(model=lora, save="adapter")})
    for model in (ModelSettings(language="lora"), ModelSettings(projector="frozen", language="full")):
        with pytest.raises(ConfigError, match="model.save"):
            require_storable({"training": TrainSettings(model=model, save="both")})


def test_adapters_of_adapters_are_refused_before_anything_trains(
    tiny_folders: dict[str, Path], tmp_path: Path, runtime: Runtime
) -> None:
    """By the settings where the folder is there, else by the stage, ahead of its data; a merged model may follow."""
    base, adapters = tiny_folders["internvl"], tmp_path / "adapter"
    policy, encoder = build(base, language="lora", projector="frozen", lora_rank=2)
    save_policy(policy, encoder.processor, adapters, base=base, as_adapters=True)
    lora = ModelSettings(projector="frozen", language="lora")
    for save in ("adapter", "both"):
        training = TrainSettings(model=lora, save=save)
        require_storable({"training": training, "policy": str(base)})
        require_storable({"training": training, "policy": "stage:sft/model"})
        with pytest.raises(ConfigError, match="goes on from a folder of adapters"):
            require_storable({"training": training, "policy": str(adapters)})
        with pytest.raises(ConfigError, match="goes on from a folder of adapters"):
            open_workbench(tmp_path / "none", adapters, AnswerTemplate(), training, needs_pairs=False, runtime=runtime)
    require_storable({"training": TrainSettings(model=lora), "policy": str(adapters)})
