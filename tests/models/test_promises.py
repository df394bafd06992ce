"""An exported folder is what a stock save of the same model is, and one that is not is not published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import broken_checkpoints as broken
from stand_ins.built_models import build
from stand_ins.tiny_models import AVAILABLE, lora_on
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig

from mmrlhf.errors import ModelError, UserError
from mmrlhf.models import export
from mmrlhf.models.export import save_policy
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import HeadSettings, build_head
from mmrlhf.models.load import load_backbone, stored_dtype
from mmrlhf.models.processors import load_processor
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE, check_policy_folder, check_reward_folder
from mmrlhf.models.reward_folder import load_reward_model, save_reward_model, starting_head
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.weight_files import read_headers
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja", "tokenizer.json")


def in_dtype(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The same checkpoint in another number type, as transformers saves it."""
    AutoModelForImageTextToText.from_pretrained(source, dtype=dtype).save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


def without_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 writes of a config, without the rotary embedding in the names that 4.x reads."""
    older = {"rope_theta", "rope_scaling", "rope_local_base_freq"} if "rope_parameters" in config else set()
    rest = {name: value for name, value in config.items() if name not in older}
    return {name: without_older_names(value) if isinstance(value, dict) else value for name, value in rest.items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, marks=[pytest.mark.slow] if number % 3 != turn else [])
        for number, family in enumerate(AVAILABLE)
        for turn, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16))
    ],
)
def test_an_export_is_a_stock_save(
    family: str, dtype: torch.dtype, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Names, shapes, types, values, configs and processor files are those that transformers writes for the base."""
    base = in_dtype(tiny_folders[family], tmp_path / "base", dtype)
    stock = AutoModelForImageTextToText.from_pretrained(base)
    stock.save_pretrained(tmp_path / "stock")
    AutoProcessor.from_pretrained(base).save_pretrained(tmp_path / "stock")
    model, encoder = build(base, lora_rank=2, **lora_on(family, ("language",)))
    save_policy(model, encoder.processor, tmp_path / "ours", dtype=stored_dtype(base))
    assert read_headers(tmp_path / "ours") == read_headers(tmp_path / "stock") == read_headers(base)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    config, stock_config = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "stock"))
    assert without_older_names(config) == stock_config
    for name in CONFIGS[1:]:
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "stock" / name).read_text(), name
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "stock").iterdir()}


@pytest.mark.parametrize("family", AVAILABLE)
def test_the_names_are_those_of_the_hub(family: str, tiny_folders: dict[str, Path]) -> None:
    """Published LLaVA and Gemma 3 checkpoints keep their tower below `vision_model`; a fresh model does not."""
    names = read_headers(tiny_folders[family])
    nested = any("vision_tower.vision_model.encoder" in name for name in names)
    assert nested == (family in ("llava_onevision", "llava_next", "gemma3"))


@pytest.mark.parametrize("family", AVAILABLE)
def test_tokenizer_config_holds_nothing_of_the_machine(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """No trace of where it was loaded from, no list that older readers fail at; the same tokens as before."""
    model, encoder = build(tiny_folders[family])
    tokenizer = encoder.processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<one_of_mine>"]})
    save_policy_with_room(model, encoder.processor, tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & content.keys()
    assert isinstance(content.get("extra_special_tokens", {}), dict)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "what ? <one_of_mine> <|im_start|> <image> é"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)
    for name in ("image_token", "video_token", "boi_token"):
        assert getattr(again, name, None) == getattr(tokenizer, name, None)


def save_policy_with_room(model: PackedModel, processor: object, folder: Path) -> None:
    """Save with a row of the embedding for every token."""
    model.backbone.resize_token_embeddings(len(processor.tokenizer))  # type: ignore[attr-defined]
    save_policy(model, processor, folder)  # type: ignore[arg-type]


def test_generation_settings_that_readers_refuse_are_left_out(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """A greedy checkpoint with a temperature, as several published ones are; greedy it stays."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    broken.edit_json(folder / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    model, encoder = build(folder)
    save_policy(model, encoder.processor, tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    written.validate(strict=True)
    assert not written.do_sample and written.eos_token_id == model.backbone.generation_config.eos_token_id


def test_half_precision_keeps_the_scores(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """What is read back is the trained model rounded once to the base's type, no further."""
    base = in_dtype(tiny_folders["qwen2_5_vl"], tmp_path / "base", torch.bfloat16)
    model, encoder = build(base)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    save_policy(model.eval(), encoder.processor, tmp_path / "out", dtype=stored_dtype(base))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    again = PackedModel(load_backbone(tmp_path / "out", ModelSettings())[0], ModelSettings()).eval()
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        assert torch.equal(again(batch).logprob, model(batch).logprob)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)])
def test_weights_that_are_no_numbers_are_not_written(
    value: float, dtype: torch.dtype | None, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """NaN, infinity, and what becomes infinite in the base's type; nothing lies in the folder then."""
    model, encoder = build(tiny_folders["internvl"])
    next(model.backbone.parameters()).data.view(-1)[0] = value
    with pytest.raises(ModelError, match=r"not finite[\s\S]*1 of"):
        save_policy(model, encoder.processor, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_says_how_much_is_needed(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is written; a write that fails all the same says it, too."""
    model, encoder = build(tiny_folders["internvl"])
    monkeypatch.setattr(export, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match=r"too full[\s\S]*1\.0 KB free[\s\S]*\d+\.\d KB for the weights"):
        save_policy(model, encoder.processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be written[\s\S]*KB for the weights"):
        save_policy(model, encoder.processor, tmp_path / "file" / "out")


@pytest.fixture(scope="module")
def reward_folder(tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a head that is not zero."""
    base, encoder = build(tiny_folders["internvl"])
    model = PackedModel(base.backbone, ModelSettings(), build_head("tanh2", 64))
    torch.nn.init.normal_(model.score_head.out.weight)  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_reward_model(model, encoder.processor, folder, card={"critique": "full"})
    return folder


HEADS = {
    "no head": (lambda folder: (folder / HEAD_FILE).unlink(), "no score_head"),
    "no card": (lambda folder: (folder / CARD_FILE).unlink(), "no reward_model.json"),
    "cut head": (lambda folder: (folder / HEAD_FILE).write_bytes((folder / HEAD_FILE).read_bytes()[:99]), "cut|fit"),
    "other kind": (lambda folder: broken.edit_json(folder / CARD_FILE, head="linear"), "does not fit its card"),
    "unknown kind": (lambda folder: broken.edit_json(folder / CARD_FILE, head="cubic"), "one of linear"),
    "other width": (lambda folder: broken.edit_json(folder / CARD_FILE, width=32), "does not fit"),
    "width in words": (lambda folder: broken.edit_json(folder / CARD_FILE, width="wide"), "width: a number"),
    "more dimensions": (lambda folder: broken.edit_json(folder / CARD_FILE, dimensions=["a"]), "does not fit"),
    "broken card": (lambda folder: (folder / CARD_FILE).write_text("{"), "cannot be read"),
    "other encoding": (lambda folder: (folder / CARD_FILE).write_bytes('{"a": "ß"}'.encode("utf-16")), "UTF-8"),
    "half a head": (
        lambda folder: save_file(dict([*load_file(folder / HEAD_FILE).items()][:2]), folder / HEAD_FILE),
        "does not fit",
    ),
    "half a model": (lambda folder: broken.rewrite(folder, broken.halved), "missing"),
}


@pytest.mark.parametrize("fault", HEADS)
def test_reward_models_that_are_not_whole(fault: str, reward_folder: Path, tmp_path: Path) -> None:
    """Refused by the look before publishing and by loading, with one reason."""
    change, said = HEADS[fault]
    shutil.copytree(reward_folder, tmp_path / "model")
    check_reward_folder(tmp_path / "model")
    change(tmp_path / "model")
    for look in (check_reward_folder, lambda folder: load_reward_model(folder, ModelSettings())):
        with pytest.raises(ModelError, match=said):
            look(tmp_path / "model")


def test_another_number_type_is_not_what_was_promised(tiny_folders: dict[str, Path]) -> None:
    """Files in float32 where the base is in bfloat16."""
    with pytest.raises(ModelError, match="number type"):
        check_policy_folder(tiny_folders["internvl"], dtype=torch.bfloat16)


PROCESSORS = {
    "template": (["chat_template.jinja"], "no chat template"),
    "preprocessor": (["processor_config.json"], "processor"),
    "tokenizer": (["tokenizer.json", "tokenizer_config.json"], "processor"),
}


@pytest.mark.parametrize("part", PROCESSORS)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_processors_that_are_not_whole(family: str, part: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Files of the processor that are not there."""
    folder = broken.copy_checkpoint(tiny_folders[family], tmp_path / "model")
    for name in PROCESSORS[part][0]:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=PROCESSORS[part][1]):
        check_policy_folder(folder)


def test_tokens_beyond_the_embedding(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """A tokenizer that has grown without its model."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    processor = load_processor(folder)
    processor.tokenizer.add_tokens(["<one>", "<two>"])  # type: ignore[attr-defined]
    processor.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"no embedding[\s\S]*the tokenizer has \d+ tokens"):
        check_policy_folder(folder)


def test_code_in_a_folder_is_never_run(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither for a family that transformers knows nor for one that only the code would make."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    witness = tmp_path / "was_run"
    (folder / "code.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass A: ...\n")
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
    auto = {name: "code.A" for name in names}
    for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
        broken.edit_json(folder / file, auto_map=auto)
    check_policy_folder(folder)
    load_backbone(folder, ModelSettings())
    broken.edit_json(folder / "config.json", model_type="of_my_own")
    with pytest.raises(ModelError, match="code in the folder is not run"):
        load_backbone(folder, ModelSettings())
    assert not witness.exists()


def turn_at(path: Path, theta: float) -> None:
    """Give a checkpoint's language model another base of its rotary embedding."""
    content = json.loads(path.read_text())
    text = content.get("text_config", content)
    for rope in (text["rope_parameters"], *text["rope_parameters"].values()):
        if isinstance(rope, dict) and "rope_theta" in rope:
            rope["rope_theta"] = theta
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("family", ["llava_onevision", "gemma3", "qwen2_5_vl"])
def test_rotations_are_written_in_the_names_that_checkpoints_are_published_with(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A reader that does not know `rope_parameters` turns as the model does; ours reads the same config again."""
    start = broken.copy_checkpoint(tiny_folders[family], tmp_path / "start")
    turn_at(start / "config.json", 5e5)
    model, encoder = build(start)
    save_policy(model, encoder.processor, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert written["rope_theta"] == 5e5
    if family == "gemma3":
        assert written["rope_local_base_freq"] == 5e5
    if family == "qwen2_5_vl":
        stored = json.loads((start / "config.json").read_text())["text_config"]["rope_parameters"]
        assert written["rope_scaling"]["mrope_section"] == stored["mrope_section"]
    folders = (start, tmp_path / "out")
    before, after = (AutoConfig.from_pretrained(folder).get_text_config().rope_parameters for folder in folders)
    assert after == before


READ_BACK = """
import json, sys, torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(folder)
ids = processor.tokenizer("what is in the picture ?", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(input_ids=ids).logits
torch.manual_seed(0)
if hasattr(model.model, "visual"):
    processed = processor.image_processor(images=[Image.linear_gradient("L").convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        states = model.model.visual.patch_embed(processed["pixel_values"])
else:
    size = model.config.vision_config.image_size
    size = size if isinstance(size, int) else size[0]
    with torch.no_grad():
        picture = torch.randn(1, 3, size, size)
        # 4.57 and 5 number the patches of Idefics3 and SmolVLM differently, whoever wrote the folder: before that
        idefics = not hasattr(model.model, "vision_tower")
        states = (model.model.vision_model.embeddings.patch_embedding(picture) if idefics
                  else model.model.vision_tower(picture).last_hidden_state)
bad = [len(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")]
print(json.dumps([transformers.__version__, bad, logits[0, -1].tolist(), states.flatten()[:500].tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", AVAILABLE)
def test_an_older_transformers_reads_the_same_model(family: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Needs transformers 4.57 with its hub library and tokenizers in a folder of their own:

    pip install --no-deps --target DIR "transformers==4.57.*" "huggingface-hub<1" "tokenizers<0.23", and
    MMRLHF_OLDER_TRANSFORMERS=DIR.
    """
    older = os.environ.get("MMRLHF_OLDER_TRANSFORMERS")
    if not older:
        pytest.skip("MMRLHF_OLDER_TRANSFORMERS names no folder with an older transformers")
    start = broken.copy_checkpoint(tiny_folders[family], tmp_path / "start")
    turn_at(start / "config.json", 5e5)  # nobody's default
    model, encoder = build(start, lora_rank=2, **lora_on(family, ("language",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_policy(model, encoder.processor, tmp_path / "out")
    found = []
    for path in (older, ""):
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", READ_BACK, str(tmp_path / "out")], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (old, wrong, *numbers), (new, _, *now) = found
    assert old != new and wrong == [0, 0, 0]
    torch.testing.assert_close(torch.tensor(numbers[0]), torch.tensor(now[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(numbers[1]), torch.tensor(now[1]), rtol=1e-4, atol=1e-4)


def test_a_trained_head_is_trained_further(
    reward_folder: Path, tiny_folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder's head to the bit, a fresh one only where there is none or where it is asked for; the log says it."""
    caplog.set_level("INFO")
    stored = load_file(reward_folder / HEAD_FILE)
    head = starting_head(HeadSettings("tanh2", dropout=0.25), reward_folder, 64)
    assert all(torch.equal(head.state_dict()[name], value) for name, value in stored.items())
    assert head.dropout.p == 0.25 and float(head.out.weight.detach().norm()) > 1
    assert "trained further" in caplog.text and "fresh" not in caplog.text
    asked = starting_head(HeadSettings("silu2", fresh=True), reward_folder, 64)
    assert float(asked.out.weight.detach().norm()) == 0 and "the trained one is left out" in caplog.text
    starting_head(HeadSettings(), tiny_folders["internvl"], 64)
    assert "the checkpoint has none" in caplog.text


@pytest.mark.parametrize("settings", [HeadSettings("linear"), HeadSettings(dimensions=["ethics"])])
def test_a_head_of_another_kind_is_not_replaced(settings: HeadSettings, reward_folder: Path, tmp_path: Path) -> None:
    """Nor is one that is damaged."""
    with pytest.raises(ModelError, match=r"another kind[\s\S]*head\.fresh=true"):
        starting_head(settings, reward_folder, 64)
    shutil.copytree(reward_folder, tmp_path / "model")
    (tmp_path / "model" / HEAD_FILE).unlink()
    with pytest.raises(ModelError, match="no score_head"):
        starting_head(HeadSettings(), tmp_path / "model", 64)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% for %}", "{{ 1 / 0 }}", "always this", "{{ a.b.c }}"]
)
def test_templates_that_fail_or_leave_texts_out(template: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Found when the processor is loaded, not in the first query."""
    folder = broken.copy_checkpoint(tiny_folders["internvl"], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="chat template does not write"):
        load_processor(folder)
