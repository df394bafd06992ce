"""Attention that also says each query's log-sum-exp, differentiable in both, in plain torch on any device.

Follows: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2: backward makes probabilities again from the saved
log-sum-exp. Differs in: chunks of queries only, each against all keys that it sees, and a gradient of the log-sum-exp.
Scores exist for one chunk at a time, so memory is linear in the number of tokens. This is the reference for fused
kernels, and what runs where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores (heads x queries x keys) that exist at once: 4 MiB in float32.
SCORES_AT_ONCE = 2**20


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[tuple[int, int]],
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Let sequences that lie behind one another attend, each query sequence to its key sequence.

    Args:
        query (Tq, H, D); key, value (Tk, Hk, D), where every H / Hk heads of queries share one of keys.
        lengths: queries and keys of each sequence.
        causal: a query sees keys up to its own index; the two lengths are equal then.
        scale: what scores are multiplied by.

    Returns:
        results (Tq, H, D) in the type of `query`, and the log-sum-exp of each query's scores (Tq, H), float32
        (float64 where `query` is).
    """
    with torch.autocast(query.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = _Attend.apply(query, key, value, tuple(lengths), causal, scale)
    return found


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: tuple[tuple[int, int], ...],
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_wide(query))
        heads = key.shape[1]
        for rows, keys, first in _chunks(lengths, query.shape[1], causal):
            scores = _scores(query[rows], key[keys], scale, first)
            found = scores.logsumexp(-1, keepdim=True)
            probabilities = scores.sub_(found).exp_()
            output[rows] = _by_token(probabilities @ _of_keys(value[keys]), heads, query[rows]).to(query.dtype)
            lse[rows] = _by_token(found, heads, query[rows])[..., 0]
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.lengths, ctx.causal, ctx.scale = lengths, causal, scale
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor, lse_gradient: Tensor) -> Any:  # pyright: ignore
        query, key, value, output, lse = ctx.saved_tensors
        query_gradient = torch.empty_like(query)
        key_gradient, value_gradient = (torch.zeros_like(part, dtype=_wide(part)) for part in (key, value))
        # What a probability's own gradient loses to the others of its row; the log-sum-exp adds to all of them.
        shared = (_widened(output_gradient) * _widened(output)).sum(-1) - lse_gradient
        heads = key.shape[1]
        for rows, keys, first in _chunks(ctx.lengths, query.shape[1], ctx.causal):
            gradient = _of_queries(_widened(output_gradient[rows]), heads)
            scores = _scores(query[rows], key[keys], ctx.scale, first)
            probabilities = scores.sub_(_of_queries(lse[rows][..., None], heads)).exp_()
            value_gradient[keys] += (probabilities.mT @ gradient).transpose(0, 1)
            of_scores = gradient @ _of_keys(value[keys]).mT
            of_scores = of_scores.sub_(_of_queries(shared[rows][..., None], heads)).mul_(probabilities).mul_(ctx.scale)
            query_gradient[rows] = _by_token(of_scores @ _of_keys(key[keys]), heads, query[rows]).to(query.dtype)
            key_gradient[keys] += (of_scores.mT @ _of_queries(_widened(query[rows]), heads)).transpose(0, 1)
        return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype), None, None, None


def _chunks(
    lengths: Sequence[tuple[int, int]], num_heads: int, causal: bool
) -> Iterator[tuple[slice, slice, int | None]]:
    """Rows of a chunk of queries, the keys that it may see, and (where causal) the index of its first query."""
    at_query = at_key = 0
    for queries, keys in lengths:
        size = max(1, SCORES_AT_ONCE // max(1, num_heads * keys))
        for first in range(0, queries, size):
            last = min(first + size, queries)
            seen = last if causal else keys
            rows = slice(at_query + first, at_query + last)
            yield rows, slice(at_key, at_key + seen), first if causal else None
        at_query, at_key = at_query + queries, at_key + keys


def _scores(query: Tensor, key: Tensor, scale: float, first: int | None) -> Tensor:
    """Scores of a chunk (Hk, H / Hk * C, L), wide; with `first`, query i of it sees keys up to `first + i`."""
    scores = (_of_queries(_widened(query), key.shape[1]) @ _of_keys(key).mT).mul_(scale)
    if first is not None:
        size, length = query.shape[0], key.shape[0]
        unseen = torch.ones(size, length, dtype=torch.bool, device=query.device).triu(first + 1)
        scores.view(-1, size, length).masked_fill_(unseen, float("-inf"))
    return scores


def _wide(part: Tensor) -> torch.dtype:
    return torch.promote_types(part.dtype, torch.float32)


def _widened(part: Tensor) -> Tensor:
    return part.to(_wide(part))


def _of_keys(part: Tensor) -> Tensor:
    """(L, Hk, D) -> (Hk, L, D), wide."""
    return _widened(part).transpose(0, 1)


def _of_queries(part: Tensor, key_heads: int) -> Tensor:
    """(C, H, D) -> (Hk, H / Hk * C, D): the query heads that share a head of keys behind one another."""
    size, heads, width = part.shape
    return part.reshape(size, key_heads, heads // key_heads, width).permute(1, 2, 0, 3).reshape(key_heads, -1, width)


def _by_token(part: Tensor, key_heads: int, query: Tensor) -> Tensor:
    """(Hk, H / Hk * C, D) -> (C, H, D), the way back from `_of_queries` of `query`."""
    size, heads = query.shape[:2]
    return part.reshape(key_heads, heads // key_heads, size, -1).permute(2, 0, 1, 3).reshape(size, heads, -1)
