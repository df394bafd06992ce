"""Weights in bf16, 4 and 8 bits: what is stored as what, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import assert_same, build, gradients
from stand_ins.tiny_models import AVAILABLE
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from benchmarks.equivalence import stock_outputs
from benchmarks.workload import SHAPES, random_backbone, write_config
from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.models import storage
from mmrlhf.models.families import adaptable_layers
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.storage import check_storage, storage_of, stored_bytes
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

bnb = pytest.importorskip("bitsandbytes")

FROZEN_TOO = {"language": "lora", "projector": "frozen"}
LORA = {"language": "lora", "projector": "frozen", "lora_rank": 4, "lora_alpha": 4.0}


def _open(model: PackedModel, seed: int = 0) -> None:
    """Give adapters values: fresh ones change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
        elif "lora_A" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)


CELLS = [("nf4", family) for family in AVAILABLE] + [("int8", family) for family in AVAILABLE]
QUICK = ("llava_onevision", "qwen2_5_vl")


def _slow_but(quick: tuple[str, ...], *cell: str) -> Any:
    return pytest.param(*cell, marks=() if cell[-1] in quick else pytest.mark.slow, id="-".join(cell))


@pytest.mark.parametrize(("weights", "family"), [_slow_but(QUICK if w == "nf4" else QUICK[:1], w, f) for w, f in CELLS])
def test_qlora_is_the_stock_model_with_the_same_quantised_weights(
    weights: str, family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """A packed row on quantised weights, against stock linear maps that hold the rounded weights, response by response:
    log-probabilities, hidden states, and the gradients of all adapters."""
    torch.manual_seed(0)
    ours, encoder = build(tiny_folders[family], weights=weights, **LORA)
    stock, _ = build(tiny_folders[family], **LORA)
    replaced = 0
    for name, module in ours.backbone.named_modules():
        if hasattr(module, "dequantized"):
            plain: Any = stock.backbone.get_submodule(name)
            assert type(plain) is nn.Linear
            rounded = module.dequantized()
            assert 0 < (rounded - plain.weight).abs().max() < 0.5 * plain.weight.abs().max()
            plain.weight.data.copy_(rounded)
            replaced += 1
    fresh, _ = load_backbone(tiny_folders[family], ModelSettings())
    assert replaced == len(adaptable_layers(fresh, "language")) > 0
    _open(ours), _open(stock)
    expected = stock_outputs(stock, encoder, groups)
    found = ours(pack_groups([encoder(group) for group in groups]))
    per_token = (found.logprob - expected.logprob).abs() / expected.num_tokens
    assert per_token.max() < 1e-5
    ours_by, stock_by = gradients(ours, found), gradients(stock, expected)
    assert all("lora_" in name for name in ours_by) and len(ours_by) == 2 * replaced
    assert_same(ours_by, stock_by)


@pytest.mark.parametrize("family", ["llava_onevision"])
def test_four_bits_are_those_of_transformers_itself(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """The stock model that transformers quantises says the same about every response, alone in its row."""
    ours, encoder = build(tiny_folders[family], weights="nf4", language="frozen", projector="frozen")
    wanted = set(adaptable_layers(build(tiny_folders[family])[0].backbone, "language"))
    plain, _ = load_backbone(tiny_folders[family], ModelSettings())
    skipped = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n not in wanted]
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=[*skipped, "lm_head"],
    )  # fmt: skip
    stock = AutoModelForImageTextToText.from_pretrained(
        tiny_folders[family], dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    assert {n for n, m in stock.named_modules() if isinstance(m, bnb.nn.Linear4bit)} == wanted
    expected = stock_outputs(
        PackedModel(stock.train(), ModelSettings(layout="rows", language="frozen")), encoder, groups
    )
    found = ours(pack_groups([encoder(group) for group in groups]))
    torch.testing.assert_close(found.logprob, expected.logprob, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("family", [_slow_but(("qwen2_5_vl", "gemma3"), f) for f in AVAILABLE])
def test_bf16_weights_change_no_number_where_the_checkpoint_is_bf16(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    """To the last bit: what autocast rounds is stored rounded, and all else is float32 as before."""
    backbone, processor = load_backbone(tiny_folders[family], ModelSettings())
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if parameter.ndim == 1:  # norms of ones and biases of zeros would be exact in any precision
            nn.init.normal_(parameter, 1.0, 0.1, generator=generator)
    backbone.bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = []
    for weights in ("float32", "bf16"):
        model, encoder = build(tmp_path, weights=weights, precision="bf16", **LORA)
        _open(model)
        batch = pack_groups([encoder(group) for group in groups])
        with autocast(model.settings, torch.device("cpu")):
            outputs = model(batch)
        assert outputs.hidden.dtype == torch.float32
        found.append((outputs, gradients(model, outputs)))
    kinds = {p.dtype for n, p in model.backbone.named_parameters() if not p.requires_grad}
    assert kinds == {torch.bfloat16, torch.float32}
    (whole, expected), (half, gradient) = found
    assert torch.equal(whole.logprob, half.logprob) and torch.equal(whole.hidden, half.hidden)
    assert expected.keys() == gradient.keys() and all(torch.equal(expected[n], gradient[n]) for n in expected)


@pytest.mark.parametrize("weights", ["bf16", "nf4", "int8"])
def test_what_trains_keeps_float32_masters(weights: str, tiny_folders: dict[str, Path]) -> None:
    """Adapters and a part that trains in full are float32, with the checkpoint's own values; sizes are as predicted."""
    folder = tiny_folders["internvl"]
    settings = ModelSettings(weights=weights, precision="bf16", language="lora", vision="full", projector="full")
    plain, _ = load_backbone(folder, ModelSettings())
    storage = storage_of(plain, settings)
    expected = {name: stored_bytes(plain, storage, name) for name, _ in plain.named_parameters()}
    backbone, _ = load_backbone(folder, settings)
    for name, parameter in backbone.named_parameters():
        if "language" not in name and parameter is not backbone.get_output_embeddings().weight:
            assert parameter.dtype == torch.float32 and torch.equal(parameter, plain.get_parameter(name))
        elif not isinstance(storage.get(name), str):
            assert parameter.numel() * parameter.element_size() == expected[name]
    model = PackedModel(backbone, settings)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(p.requires_grad for n, p in model.named_parameters() if "vision" in n)


def test_policy_and_reference_are_one_set_of_quantised_weights(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """With its adapters off, a trained policy on 4 bits is the frozen model on the same 4 bits, to the last bit."""
    folder = tiny_folders["internvl"]
    policy, encoder = build(folder, weights="nf4", **LORA)
    _open(policy)
    reference, _ = build(folder, weights="nf4", projector="frozen", language="frozen")
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        expected = reference(batch).logprob
        assert (policy(batch).logprob - expected).abs().max() > 1e-2
        with policy.adapters_off():
            assert torch.equal(policy(batch).logprob, expected)


def test_other_parts_are_quantised_where_asked(tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders["internvl"]
    chosen = {"weights": "nf4", "projector": "frozen", "language": "lora"}
    kinds = {}
    for quantized in (("language",), ("vision", "language"), ("projector",)):
        backbone, _ = load_backbone(folder, ModelSettings(**chosen, quantized_parts=quantized))
        packed = [n for n, m in backbone.named_modules() if hasattr(m, "dequantized")]
        kinds[quantized] = {n.split(".")[1] for n in packed}
    assert kinds[("language",)] == {"language_model"}
    assert kinds[("vision", "language")] == {"language_model", "vision_tower"}
    assert kinds[("projector",)] == {"multi_modal_projector"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_hold_rows_of_any_size(dtype: torch.dtype) -> None:
    """To half a step of each row's own scale, also where half precision ends, and rows of zeros; scaling scales."""
    from mmrlhf.models.quantized import Int8Linear

    def stored(weight: torch.Tensor) -> torch.Tensor:
        layer = Int8Linear(64, 5, bias=False)
        layer.weight = layer.quantize(weight)
        layer.settle()
        return layer.dequantized()

    row = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.stack([row * size for size in (0.0, 1.0, 2.0**15, -(2.0**17), 2.0**100)])
    steps = weight.float().abs().amax(1, keepdim=True) / 127
    found = stored(weight)
    assert ((found - weight.float()).abs() <= 0.51 * steps).all()
    assert torch.equal(found[1], stored(row.expand(5, -1))[0]) and torch.equal(found[3], -found[1] * 2.0**17)


@pytest.mark.parametrize("shape", [(1, 8), (5, 64), (90, 24), (37, 96)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_in_parts_a_weight_is_what_it_is_whole(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, scales and the scales' scales are those of bitsandbytes' own layer, however few numbers a part has."""
    import bitsandbytes

    from mmrlhf.models import quantized

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = bitsandbytes.nn.Params4bit(weight, quant_type="nf4", compress_statistics=True).to("cpu")
    eight = quantized.Int8Linear(shape[1], shape[0], bias=False)
    values, scale = eight.quantize(weight), eight._read
    for at_once in (1, 500, 2**20):
        monkeypatch.setattr(quantized, "_AT_ONCE", at_once)
        ours = quantized.NF4Linear(shape[1], shape[0], bias=False).quantize(weight)
        assert torch.equal(ours.data, theirs.data)
        mine, state = (each.quant_state.as_dict() for each in (ours, theirs))
        assert mine.keys() == state.keys()
        assert all(torch.equal(mine[k], v) if isinstance(v, torch.Tensor) else mine[k] == v for k, v in state.items())
        again = quantized.Int8Linear(shape[1], shape[0], bias=False)
        assert torch.equal(again.quantize(weight), values) and torch.equal(again._read, scale)


def test_what_cannot_be_stored_is_refused_before_anything_is_loaded(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"cannot train in full[\s\S]*language=full[\s\S]*language=lora"):
        load_backbone(tiny_folders["internvl"], ModelSettings(weights="nf4"))
    with pytest.raises(ConfigError, match="vision=full"):
        check_storage(ModelSettings(weights="int8", language="lora", vision="full", quantized_parts=("vision",)))
    check_storage(ModelSettings(weights="int8", language="lora", vision="full"))
    with pytest.raises(ConfigError, match="precision=bf16"):
        check_storage(ModelSettings(weights="bf16"))
    with pytest.raises(ConfigError, match="projector of this model has no linear map"):
        load_backbone(
            tiny_folders["gemma3"],
            ModelSettings(weights="nf4", language="lora", projector="frozen", quantized_parts=("projector",)),
        )
    with pytest.raises(ConfigError) as caught:
        ModelSettings(quantized_parts=("head",))
    assert caught.value.argument == "quantized_parts"
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mmrlhf\[quantized\]'"):
        check_storage(ModelSettings(weights="nf4", language="frozen"))
    check_storage(ModelSettings(weights="bf16", precision="bf16"))


def test_a_tensor_of_another_shape_is_named_and_not_quantised(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_folders["internvl"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(each for each in tensors if each.endswith("layers.0.mlp.up_proj.weight"))
    save_file({**tensors, name: tensors[name][:8].clone()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"of another shape: .*up_proj"):
        load_backbone(tmp_path, ModelSettings(weights="nf4", language="lora"))


@pytest.mark.parametrize("weights", ["float32", "bf16", "nf4", "int8"])
def test_a_random_model_is_stored_as_a_loaded_one(weights: str, tmp_path: Path) -> None:
    """Sizes without a checkpoint are measured on what training would have: types, shapes, buffers, numbers."""
    config = write_config(SHAPES["tiny"], tmp_path)
    settings = ModelSettings(weights=weights, precision="bf16" if weights != "float32" else "float32", **FROZEN_TOO)
    whole = random_backbone(config, ModelSettings(), device="cpu", seed=3)
    whole.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded, _ = load_backbone(tmp_path, settings)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    storage.store_in_place(found.float() if weights == "float32" else found, settings)
    made = random_backbone(config, settings, device="cpu")
    kinds = {name: (type(m), m.training) for name, m in loaded.named_modules()}
    for model in (found.eval(), made.eval()):
        assert {name: (type(m), m.training) for name, m in model.named_modules()} == kinds
        assert dict(_described(model)) == dict(_described(loaded))
    for (name, one), (_, other) in zip(loaded.named_parameters(), found.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    rows = torch.tensor([[5, 9]])
    assert found.get_input_embeddings()(rows).dtype is loaded.get_input_embeddings()(rows).dtype is torch.float32


def _described(model: nn.Module) -> list[tuple[str, Any]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return [(name, (type(value), value.dtype, value.shape)) for name, value in tensors]
