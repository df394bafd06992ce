"""A model that cannot read packed rows is found out before it trains, and runs single rows instead."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.built_models import build
from stand_ins.hybrid_model import build_hybrid
from stand_ins.tiny_models import AVAILABLE

from benchmarks.equivalence import stock_outputs
from mmrlhf.errors import ModelError
from mmrlhf.models.attention import use_packed_attention
from mmrlhf.models.decoding import generate
from mmrlhf.models.decoding_rows import placeholders
from mmrlhf.models.load import check_folder
from mmrlhf.models.selfcheck import TOLERANCE, packing_error, settle_layout
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hybrid(tmp_path_factory.mktemp("hybrid"))


@pytest.mark.parametrize("family", AVAILABLE)
def test_families_pass(family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Packed and single rows agree by a wide distance from the tolerance; the model is left as it was."""
    model, encoder = build(tiny_folders[family])
    model.train()
    batch = pack_groups([encoder(group) for group in groups])
    assert packing_error(model, batch) < TOLERANCE / 20
    settle_layout(model, [batch])
    assert model.layout == "packed" and model.training


def test_hybrid_model_falls_back_to_rows(
    hybrid: Path, groups: list[PreferenceGroup], caplog: pytest.LogCaptureFixture
) -> None:
    """One line says why; rows are right against the stock model, forward and generation."""
    model, encoder = build(hybrid)
    batch = pack_groups([encoder(group) for group in groups])
    with caplog.at_level(logging.WARNING, logger="mmrlhf"):
        settle_layout(model, [batch])
    assert model.layout == "rows" and len(caplog.records) == 1
    assert "linear_attention" in caplog.text and "layout=rows" in caplog.text
    stock = stock_outputs(model, encoder, groups)
    torch.testing.assert_close(model(batch).logprob, stock.logprob, rtol=2e-6, atol=5e-5)
    torch.nn.init.normal_(model.backbone.get_output_embeddings().weight, std=1.0)
    found = generate(model, [encoder.context(g) for g in groups], max_new_tokens=6, end_tokens=encoder.end_tokens)
    for group, written in zip(groups, found, strict=True):
        inputs, _ = encoder.stock_inputs(group, group.responses[0], with_answer=False)
        stock_ids = model.backbone.generate(
            **inputs, max_new_tokens=6, do_sample=False, suppress_tokens=placeholders(model) or None
        )[0]
        assert written[0].ids == stock_ids[inputs["input_ids"].shape[1] :].tolist()[: len(written[0].ids)]


def test_the_forward_finds_it_without_being_told(hybrid: Path, groups: list[PreferenceGroup]) -> None:
    """Even if the configuration kept quiet, the hidden states would not."""
    model, encoder = build(hybrid)
    use_packed_attention(model.backbone)
    assert packing_error(model, pack_groups([encoder(groups[0])])) > 10 * TOLERANCE


def test_explicit_packed_is_refused(hybrid: Path) -> None:
    with pytest.raises(ModelError, match=r"linear_attention[\s\S]*layout=rows"):
        build(hybrid, layout="packed")
    with pytest.raises(ModelError, match="linear_attention"):
        check_folder(hybrid, ModelSettings(layout="packed"))


@pytest.mark.parametrize("asked", ["auto", "packed"])
def test_a_mask_that_is_ignored_is_found(
    asked: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup], caplog: pytest.LogCaptureFixture
) -> None:
    """Layers that drop a 4-D mask let branches read each other."""
    model, encoder = build(tiny_folders["llava_onevision"], layout=asked)

    def drop_mask(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": None if mask is not None and mask.dim() == 4 else mask}

    for layer in model.backbone.base_model.language_model.layers:
        layer.register_forward_pre_hook(drop_mask, with_kwargs=True)
    batch = pack_groups([encoder(group) for group in groups])
    if asked == "packed":
        with pytest.raises(ModelError, match="differ by"):
            settle_layout(model, [batch])
    else:
        settle_layout(model, [batch])
        assert model.layout == "rows" and "differ by" in caplog.text


def test_samples_of_rows_are_reproducible(hybrid: Path, groups: list[PreferenceGroup]) -> None:
    """A seed fixes them, and several samples of a branch differ."""
    model, encoder = build(hybrid)
    settings: dict[str, Any] = {"max_new_tokens": 8, "end_tokens": [0], "temperature": 1.5, "num_samples": 3}
    context = [encoder.context(groups[0])]
    first = generate(model, context, seed=3, **settings)
    assert first == generate(model, context, seed=3, **settings)
    assert len(first[0]) == 3 and len({tuple(each.ids) for each in first[0]}) > 1
