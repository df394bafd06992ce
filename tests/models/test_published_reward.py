"""The published reward model's layout: every key is accounted for, and the same weights give the same scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stand_ins.built_models import build

from mmrlhf.errors import ModelError
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.published_reward import CARD, CLOSING, INSTRUCTION, REQUEST, import_released
from mmrlhf.models.reward_folder import load_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.types import PreferenceGroup, Response

# stock name -> name in the published checkpoint; written down by hand from the original code's module tree
ORIGINAL = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.language_model.", "model."),
    ("score_head.hidden.", "rm_head.dense."),
    ("score_head.out.", "rm_head.out_proj."),
)


def original_name(name: str) -> str:
    for stock, original in ORIGINAL:
        if name.startswith(stock):
            return original + name.removeprefix(stock)
    return name


@pytest.fixture(scope="module")
def source(tiny_folders: dict[str, Path]) -> PackedModel:
    """A tiny LLaVA-OneVision with a random head, as if trained."""
    base, _ = build(tiny_folders["llava_onevision"])
    torch.manual_seed(0)
    head = build_head("tanh2", 64)
    torch.nn.init.normal_(head.out.weight)
    for parameter in base.backbone.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return PackedModel(base.backbone, ModelSettings(), head).eval()


def state_of(source: PackedModel) -> dict[str, torch.Tensor]:
    """Its tensors in the original layout, with the language-model head that the 7B model does not tie."""
    plain = {name.removeprefix("backbone."): value.contiguous() for name, value in source.state_dict().items()}
    return {original_name(name): value.clone() for name, value in plain.items()}


@pytest.fixture
def checkpoint(source: PackedModel, tmp_path: Path) -> Path:
    """In two files, as large checkpoints are."""
    state = state_of(source)
    names = sorted(state)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: state[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


def test_the_imported_model_scores_as_the_original(
    source: PackedModel, checkpoint: Path, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    import_released(checkpoint, tiny_folders["llava_onevision"], tmp_path / "model")
    model, processor, card = load_reward_model(tmp_path / "model", ModelSettings())
    assert {name: card[name] for name in CARD} == CARD and card["head"] == "tanh2"
    template = CritiqueTemplate("full", INSTRUCTION, request=REQUEST, closing=CLOSING)
    encoder = Encoder(processor, template=template, positions=positions_for(model.backbone))
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        assert torch.equal(model.eval().score(model(batch)), source.score(source(batch)))


def test_its_conversation_is_the_released_one(checkpoint: Path, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Written out by hand from the released evaluation script and its conversation template `qwen_1_5`."""
    import_released(checkpoint, tiny_folders["llava_onevision"], tmp_path / "model")
    _, processor, card = load_reward_model(tmp_path / "model", ModelSettings())
    template = CritiqueTemplate("full", card["instruction"], request=card["request"], closing=card["closing"])
    group = PreferenceGroup("k", "how many ?", (Response("four", critiques={"full": "right ."}),))
    encoder = Encoder(processor, template=template, positions=lambda ids, media: torch.arange(len(ids))[None])
    encoded = encoder(group)
    text = processor.tokenizer.decode(torch.cat([encoded.prefix_ids, encoded.branches[0].ids]))
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "You are an unbiased and fair evaluator tasked with assessing the quality of answers provided by a Large "
        "Multimodal Model (LMM). Given the following question and the LMM's response, please evaluate the correctness, "
        "clarity, and completeness of the answer. Provide a detailed explanation of your assessment, including "
        "specific points of strength and areas for improvement.\n\n"
        "[Question]: how many ?\n[LMM Response]: four\n\n[Evaluation]:<|im_end|>\n<|im_start|>assistant\n"
        "right .<|im_end|>\n"
    )
    branch = encoded.branches[0]
    learned = processor.tokenizer.decode(branch.ids[branch.labels])
    assert learned == "right .<|im_end|>", "the line break is read, not learned"


@pytest.mark.parametrize("change", ["missing", "unknown", "head", "shape"])
def test_keys_that_do_not_fit_are_named(
    change: str, checkpoint: Path, source: PackedModel, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    state = state_of(source)
    name = {
        "missing": "model.layers.0.mlp.up_proj.weight",
        "unknown": "model.vision_resampler.weight",
        "head": "rm_head.out_proj.weight",
        "shape": "model.norm.weight",
    }[change]
    if change in ("missing", "head"):
        del state[name]
    else:
        state[name] = torch.zeros(3)
    for file in checkpoint.iterdir():
        file.unlink()
    save_file(state, checkpoint / "model.safetensors")
    named = {"missing": "mlp.up_proj", "unknown": "vision_resampler", "head": "score_head.out", "shape": "norm.weight"}
    with pytest.raises(ModelError, match=named[change]):
        import_released(checkpoint, tiny_folders["llava_onevision"], tmp_path / "model")


def test_a_folder_without_weights_is_refused(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match="holds no weights"):
        import_released(tmp_path, tiny_folders["llava_onevision"], tmp_path / "model")
