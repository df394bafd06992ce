"""Attention without a mask is that under the dense mask, forward and gradient, in memory linear in the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.built_models import TRAIN_ALL, assert_same, build, gradients
from stand_ins.tiny_models import AVAILABLE
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.live_tensors import LiveTensors
from mmrlhf.errors import ConfigError
from mmrlhf.models import chunked_attention
from mmrlhf.models.attention import SEGMENTS, packed_attention
from mmrlhf.models.cascade import CHUNKED, VARLEN, Kernel, Segments, cascade_attention
from mmrlhf.models.forward import autocast
from mmrlhf.models.masks import attention_pattern
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

# A group is its prefix's length and its branches' lengths.
GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3
)
HEADS, KEY_HEADS, WIDTH, SCALE = 6, 2, 8, 0.4
CPU = torch.device("cpu")


def _forgetful(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    output, lse = CHUNKED.attend(*args, **kwargs)
    return output, lse.detach()


# What torch's fused kernel is like: nothing flows back through its log-sum-exp.
FORGETFUL = Kernel(_forgetful, lse_has_gradient=False)


def dense_mask(groups: list[tuple[int, list[int]]]) -> Tensor:
    """The rule, block by block: earlier tokens of one's own prefix and branch (T, T)."""
    blocks = []
    for prefix, branches in groups:
        number = torch.repeat_interleave(torch.arange(len(branches) + 1), torch.tensor([prefix, *branches]))
        blocks.append((number[None] == 0) | (number[None] == number[:, None]))
    return torch.block_diag(*blocks).bool().tril()


def parts(length: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Queries, keys and values of a row, and the gradient that comes in from above (1, T, H, D)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, length, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)] + [(1, length, HEADS, WIDTH)]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [part.requires_grad_() for part in made[:3]] + made[3:]


def dense(query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[int, list[int]]]) -> Tensor:
    """Torch's attention under the dense mask."""
    mask = dense_mask(groups).to(query.device)
    found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SCALE, enable_gqa=True)
    return found.transpose(1, 2)


@pytest.mark.parametrize("kernel", [CHUNKED, FORGETFUL], ids=["chunked", "without gradient of lse"])
@pytest.mark.parametrize("scores", [2**24, 50], ids=["whole", "in chunks"])
@settings(max_examples=30)
@given(groups=GROUPS)
def test_it_is_attention_under_the_dense_mask(kernel: Kernel, scores: int, groups: list[tuple[int, list[int]]]) -> None:
    """Forward, and the gradient by queries, keys and values; several heads of queries share one of keys."""
    segments = Segments.of(groups, CPU)
    query, key, value, above = parts(sum(segments.all.lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_attention, "SCORES_AT_ONCE", scores)
        ours = cascade_attention(query, key, value, segments, SCALE, kernel)
        found = torch.autograd.grad(ours, [query, key, value], above)
    theirs = dense(query, key, value, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, [query, key, value], above), rtol=1e-5, atol=2e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of results and of the log-sum-exp, causal and not: torch's own check."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(5, heads, 4, generator=generator, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)
    ]
    for causal in (True, False):

        def attend(*parts: Tensor, causal: bool = causal) -> tuple[Tensor, Tensor]:
            return chunked_attention.chunked_attention(*parts, [(3, 3), (2, 2)], causal=causal, scale=0.7)

        assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("family", AVAILABLE)
def test_cascade_equals_sdpa(family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]) -> None:
    """Every family of plain layers, all modalities in one row, forward and gradient of all parts; others refused."""
    sdpa, encoder = build(tiny_folders[family], attention="sdpa", **TRAIN_ALL)
    cascade, _ = build(tiny_folders[family], attention="cascade", **TRAIN_ALL)
    batch = pack_groups([encoder(group) for group in groups])
    if not attention_pattern(sdpa.backbone.config).plain:
        with pytest.raises(ConfigError, match=r"a sliding window of \d+ tokens and pictures whose tokens see"):
            cascade(batch)
        return
    left, right = cascade(batch), sdpa(batch)
    torch.testing.assert_close(left.logprob, right.logprob, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(left.hidden, right.hidden, rtol=1e-4, atol=1e-5)
    assert_same(gradients(cascade, left), gradients(sdpa, right), tolerance=1e-5)


def test_it_rounds_as_attention_does_under_autocast(
    tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """In bf16 it is as far from float32 as sdpa is, within a factor of two."""
    outputs = []
    for attention, precision in (("sdpa", "float32"), ("sdpa", "bf16"), ("cascade", "bf16")):
        model, encoder = build(tiny_folders["qwen2_5_vl"], attention=attention, precision=precision)
        batch = pack_groups([encoder(group) for group in groups])
        with torch.no_grad(), autocast(ModelSettings(precision=precision), model.device):
            outputs.append(model(batch).hidden.float())
    exact, stock, ours = outputs
    assert 0 < (ours - exact).norm() < 2 * (stock - exact).norm()


def test_memory_is_linear_in_the_row() -> None:
    """Forward and backward of a row four times as long hold four times as much; a dense mask alone, 16 times."""
    peaks = []
    for times in (1, 4):
        segments = Segments.of([(200 * times, [20 * times, 30 * times])], CPU)
        query, key, value, above = parts(250 * times)
        with pytest.MonkeyPatch.context() as patch, LiveTensors() as live:
            patch.setattr(chunked_attention, "SCORES_AT_ONCE", 2**13)
            cascade_attention(query, key, value, segments, SCALE).backward(above)
        peaks.append(live.peak)
    assert 3 < peaks[1] / peaks[0] < 4.2


def test_a_layer_that_is_not_told_the_segments_says_so() -> None:
    query, key, value, _ = parts(10)
    nothing = torch.zeros(1, 1, 0, 10)
    with pytest.raises(ConfigError, match="does not hand on"):
        packed_attention(torch.nn.Identity(), query, key, value, nothing, scaling=SCALE)
    segments = Segments.of([(6, [4])], CPU)
    found, _ = packed_attention(torch.nn.Identity(), query, key, value, nothing, scaling=SCALE, **{SEGMENTS: segments})
    torch.testing.assert_close(found, dense(query, key, value, [(6, [4])]))


@pytest.mark.parametrize("asked", [{"softcap": 50.0}, {"s_aux": torch.zeros(HEADS)}], ids=["cap", "sinks"])
def test_scores_that_are_more_than_scaled_are_refused(asked: dict[str, Any]) -> None:
    query, key, value, _ = parts(10)
    given = {"scaling": SCALE, SEGMENTS: Segments.of([(6, [4])], CPU), **asked}
    with pytest.raises(ConfigError, match=next(iter(asked))):
        packed_attention(torch.nn.Identity(), query, key, value, torch.zeros(1, 1, 0, 10), **given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_fused_kernel_is_the_chunked_one_on_a_gpu() -> None:
    """Forward and gradient in bf16, against the same numbers in float32 under the dense mask."""
    groups = [(300, [40, 7, 130]), (90, [64])]
    segments = Segments.of(groups, torch.device("cuda"))
    rounded = parts(sum(segments.all.lengths), dtype=torch.bfloat16, device="cuda")
    exact = [part.detach().float().requires_grad_() for part in rounded[:3]]
    theirs = dense(*exact, groups)
    wanted = torch.autograd.grad(theirs, exact, rounded[3].float())
    for kernel in (CHUNKED, VARLEN):
        ours = cascade_attention(*rounded[:3], segments, SCALE, kernel)
        found = torch.autograd.grad(ours, rounded[:3], rounded[3])
        for left, right in zip((ours, *found), (theirs, *wanted), strict=True):
            assert (left.float() - right).norm() < 0.02 * right.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl"])
def test_cascade_equals_sdpa_on_a_gpu(
    family: str, tiny_folders: dict[str, Path], groups: list[PreferenceGroup]
) -> None:
    """In bf16 by the fused kernel: as far from float32 as sdpa is, within a factor of two."""
    outputs = []
    for attention, precision in (("sdpa", "float32"), ("sdpa", "bf16"), ("cascade", "bf16")):
        model, encoder = build(tiny_folders[family], attention=attention, precision=precision, **TRAIN_ALL)
        batch = pack_groups([encoder(group) for group in groups]).to("cuda")
        with autocast(ModelSettings(precision=precision), torch.device("cuda")):
            found = model.cuda()(batch)
        weights = torch.linspace(-1, 1, len(found.logprob), device="cuda")
        (found.logprob @ weights).backward()
        outputs.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    exact, stock, ours = outputs
    assert 0 < (ours - exact).norm() < 2 * (stock - exact).norm()
