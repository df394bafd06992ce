"""Attention in a packed row without a mask: prefixes by causal attention, branches in two parts that are joined.

A branch token sees its group's prefix and what came before it in its own branch. Both parts are plain attention, over
keys that lie together, and softmax over both is their mean weighted by the sums of their exponentials:

    o = s * o_own + (1 - s) * o_prefix,    s = sigmoid(lse_own - lse_prefix)

which is what cascade and tree attention do when they decode (arXiv 2501.01005, section 3.1; 2404.00242). Differs in: it
trains. Nothing has the size of tokens x tokens. In bf16 on a GPU the parts are torch's `varlen_attn` (FlashAttention),
elsewhere `mmrlhf.models.chunked_attention`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmrlhf.models.chunked_attention import chunked_attention
from mmrlhf.tensors import PackedBatch

# The widest head that FlashAttention takes.
_WIDEST_HEAD = 256


@dataclass(frozen=True)
class Runs:
    """Sequences behind one another: lengths of N, and where each begins and the last ends (N + 1,) int32."""

    lengths: tuple[int, ...]
    starts: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Runs:
        """Runs of these lengths."""
        starts = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), starts)


@dataclass(frozen=True)
class Segments:
    """How a row without padding is cut: per group a prefix, and behind it the group's branches.

    all: prefixes and branches as they come; prefixes: one for each group; branches: each; answers: all branches of a
    group as one.
    """

    all: Runs
    prefixes: Runs
    branches: Runs
    answers: Runs

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Segments:
        """Segments of groups, each given as the length of its prefix and those of its branches."""
        return cls(
            all=Runs.of([length for prefix, branches in groups for length in (prefix, *branches)], device),
            prefixes=Runs.of([prefix for prefix, _ in groups], device),
            branches=Runs.of([length for _, branches in groups for length in branches], device),
            answers=Runs.of([sum(branches) for _, branches in groups], device),
        )

    def parted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of tokens (T, ...) of prefixes, and of branches; a view where there is one group."""
        cut = [length for pair in zip(self.prefixes.lengths, self.answers.lengths, strict=True) for length in pair]
        parts = values.split(cut)
        prefixes, answers = parts[::2], parts[1::2]
        return (prefixes[0], answers[0]) if len(prefixes) == 1 else (torch.cat(prefixes), torch.cat(answers))

    def whole(self, prefixes: Tensor, branches: Tensor) -> Tensor:
        """The way back from `parted`."""
        of_groups = zip(prefixes.split(self.prefixes.lengths), branches.split(self.answers.lengths), strict=True)
        return torch.cat([part for group in of_groups for part in group])


def segments_of(batch: PackedBatch) -> Segments:
    """How a packed row is cut."""
    first = torch.ones_like(batch.branch_of_token, dtype=torch.bool)
    first[1:] = (batch.branch_of_token.diff() != 0) | (batch.group_of_token.diff() != 0)
    at = first.nonzero()[:, 0]
    is_prefix = (batch.branch_of_token[at] == 0).tolist()
    lengths = [after - before for before, after in pairwise([*at.tolist(), batch.num_tokens])]
    groups: list[tuple[int, list[int]]] = []
    for length, prefix in zip(lengths, is_prefix, strict=True):
        if prefix:
            groups.append((length, []))
        else:
            groups[-1][1].append(length)
    return Segments.of(groups, batch.input_ids.device)


@dataclass(frozen=True)
class Kernel:
    """Attention of runs of queries to runs of keys.

    attend: results (T, H, D) and log-sum-exp (T, H) float32 of queries; lse_has_gradient: whether the latter has one.
    """

    attend: Callable[..., tuple[Tensor, Tensor]]
    lse_has_gradient: bool


def cascade_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, kernel: Kernel | None = None
) -> Tensor:
    """Attend in a packed row.

    Args:
        query (1, H, T, D); key, value (1, Hk, T, D).
        kernel: of the parts; None: `VARLEN` where it runs, else `CHUNKED`.

    Returns:
        what each token reads (1, T, H, D).
    """
    kernel = kernel or (VARLEN if _has_varlen(query) else CHUNKED)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    read, lse = kernel.attend(query, key, value, segments.all, segments.all, causal=True, scale=scale)
    of_prefixes, own = segments.parted(read)
    _, own_lse = segments.parted(lse)
    _, asking = segments.parted(query)
    prefix_key, branch_key = segments.parted(key)
    prefix_value, _ = segments.parted(value)
    to_prefix = {"queries": segments.answers, "keys": segments.prefixes, "causal": False, "scale": scale}
    to_branch = {"queries": segments.branches, "keys": segments.branches, "causal": True, "scale": scale}
    above, above_lse = kernel.attend(asking, prefix_key, prefix_value, **to_prefix)
    if torch.is_grad_enabled() and not kernel.lse_has_gradient:
        above_lse = above_lse + _lse_gradient(kernel, asking, prefix_key, **to_prefix)
        own_lse = own_lse + _lse_gradient(kernel, asking, branch_key, **to_branch)
    share = torch.sigmoid(own_lse - above_lse)[..., None]
    joined = torch.lerp(above.float(), own.float(), share).to(query.dtype)
    return segments.whole(of_prefixes, joined)[None]


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, queries: Runs, keys: Runs, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Results (T, H, D) and log-sum-exp (T, H) in plain torch, both with their gradient."""
    lengths = list(zip(queries.lengths, keys.lengths, strict=True))
    return chunked_attention(query, key, value, lengths, causal=causal, scale=scale)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, queries: Runs, keys: Runs, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by torch's FlashAttention, whose log-sum-exp has no gradient."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    options: dict[str, Any] = {"return_aux": AuxRequest(lse=True), "scale": scale}
    options["window_size"] = (-1, 0) if causal else (-1, -1)
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.12; before, heads may always differ
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    output, lse = varlen_attn(
        query, key, value, queries.starts, keys.starts, max(queries.lengths), max(keys.lengths), **options
    )
    # torch's page says (T, H), its kernel gives (H, T).
    return output, (lse.mT if _gives_heads_first(query.device) else lse).detach()


def _lse_gradient(kernel: Kernel, query: Tensor, key: Tensor, *, scale: float, **runs: Any) -> Tensor:
    """Zeros (T, H) with the gradient of the log-sum-exp of a kernel that has none of its own.

    By a query q it is scale * sum_j p_j k_j: what attention reads where keys are values. By a key it is scale * p_j q,
    summed over queries: the gradient of that reading by its values, with q coming in.
    """
    mean_key, _ = kernel.attend(query.detach(), key.detach(), key, scale=scale, **runs)
    linear = scale * ((query * mean_key.detach()).sum(-1) + (query.detach() * mean_key).sum(-1))
    return (linear - linear.detach()).float()


def _has_varlen(query: Tensor) -> bool:
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and query.shape[-1] <= _WIDEST_HEAD and _takes_windows()


@cache
def _takes_windows() -> bool:
    """Whether this torch's `varlen_attn` has the arguments that are used here (2.11 and later)."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "return_aux", "scale"} <= set(inspect.signature(varlen_attn).parameters)


@cache
def _gives_heads_first(device: torch.device) -> bool:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    three, starts = torch.zeros(3, 1, 64, dtype=torch.bfloat16, device=device), torch.tensor([0, 3], device=device)
    _, lse = varlen_attn(three, three, three, starts.int(), starts.int(), 3, 3, return_aux=AuxRequest(lse=True))
    return lse.shape[0] == 1


CHUNKED, VARLEN = Kernel(_chunked, lse_has_gradient=True), Kernel(_varlen, lse_has_gradient=False)
