"""Attention back ends say the same; the gradient of FlexAttention on a GPU only: torch has none on CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import TRAIN_ALL, assert_same, build, gradients
from torch.nn.attention.flex_attention import flex_attention

from mmrlhf.errors import ConfigError
from mmrlhf.models.attention import choose_back_end
from mmrlhf.models.layout import BLOCK
from mmrlhf.models.masks import AttentionPattern
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

FAMILIES = ["llava_onevision", "qwen2_5_vl", "internvl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_equals_sdpa(family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """All modalities in one row with a block mask, against one group per batch entry."""
    sdpa, encoder = build(tiny_folders[family], attention="sdpa")
    flex, _ = build(tiny_folders[family], attention="flex")
    batch = pack_groups([encoder(group) for group in groups])
    with torch.no_grad():
        left, right = flex(batch), sdpa(batch)
    torch.testing.assert_close(left.logprob, right.logprob, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(left.hidden, right.hidden, rtol=1e-4, atol=1e-5)


def test_flex_cannot_train_on_a_cpu(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """It says so before torch does."""
    model, encoder = build(tiny_folders["internvl"], attention="flex")
    with pytest.raises(ConfigError, match=r"model\.settings\.attention"):
        model(pack_groups([encoder(groups[0])]))


def test_torch_has_no_gradient_of_flex_on_a_cpu() -> None:
    """The day it has one this fails: then `choose_back_end` need not refuse it, and it is compared here."""
    query = torch.zeros(1, 1, BLOCK, 8, requires_grad=True)
    with pytest.raises(NotImplementedError, match="requires_grad"):
        flex_attention(query, query, query)


def test_auto_is_sdpa_on_a_cpu_and_wishes_are_kept(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    _, encoder = build(tiny_folders["internvl"])
    batch = pack_groups([encoder(groups[0])])
    assert (
        choose_back_end("auto", batch, AttentionPattern()) == "sdpa"
        and choose_back_end("sdpa", batch, AttentionPattern()) == "sdpa"
    )
    with torch.no_grad():
        assert choose_back_end("flex", batch, AttentionPattern()) == "flex"


def test_no_mask_of_row_by_row_size(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """What backward keeps for attention is one mask of branch tokens x row, shared by all layers."""
    model, encoder = build(tiny_folders["llava_onevision"])
    batch = pack_groups([encoder(groups[0])])
    prefix, row = int((batch.branch_of_token == 0).sum()), batch.num_tokens
    masks: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 4 and tensor.shape[-1] == row and tensor.shape[-2] in (row, row - prefix):
            assert tensor.shape[-2] == row - prefix
            masks.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    assert len(masks) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_flex_equals_sdpa_on_a_gpu(family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Compiled FlexAttention, forward and gradient, in float32; `auto` chooses it."""
    # tf32 would blur the comparison
    torch.backends.cuda.matmul.allow_tf32 = False
    flex, encoder = build(tiny_folders[family], attention="auto", **TRAIN_ALL)
    sdpa, _ = build(tiny_folders[family], attention="sdpa", **TRAIN_ALL)
    batch = pack_groups([encoder(group) for group in groups]).to("cuda")
    assert choose_back_end("auto", batch, AttentionPattern()) == "flex"
    left, right = flex.cuda()(batch), sdpa.cuda()(batch)
    torch.testing.assert_close(left.logprob, right.logprob, rtol=1e-4, atol=1e-3)
    assert_same(gradients(flex, left), gradients(sdpa, right), tolerance=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_compilation_per_bucket_on_a_gpu(tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Rows of other lengths in the same bucket, and other groupings, compile nothing anew."""
    model, encoder = build(tiny_folders["llava_onevision"], attention="flex")
    model.cuda()
    encoded = [encoder(group) for group in groups]
    model(pack_groups(encoded[:1]).to("cuda")).logprob.sum().backward()
    torch._dynamo.utils.counters.clear()
    with torch.compiler.set_stance("fail_on_recompile"):
        model(pack_groups(encoded[-1:]).to("cuda")).logprob.sum().backward()
