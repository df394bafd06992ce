"""From ranked responses to the (chosen, rejected) pairs that enter a loss.

Follows: MM-RLHF (arXiv 2502.10391): all pairs of a query whose ranks differ; its baseline uses only the hardest pair.
Differs in: two schemes between these (adjacent, best_vs_rest), the option to weight queries instead of pairs equally,
rules for ties, and a rule for groups that only have explicit pairs.

A response's depth, on which `hardest` and `best_vs_rest` rest, is its rank where every paired response of the group has
one, and otherwise its losses minus its wins among the group's pairs (which orders responses as ranks would where the
pairs come from ranks, and is defined for partial and cyclic annotations too). Smaller is better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from mmrlhf.losses.bounds import require_choice
from mmrlhf.tensors import PairIndex

Scheme = Literal["all", "hardest", "adjacent", "best_vs_rest"]
Weighting = Literal["pair", "query"]


def build_pairs(
    pairs: Tensor,
    ranks: Tensor,
    group_of_response: Tensor,
    *,
    scheme: Scheme = "all",
    weighting: Weighting = "pair",
    ties: Tensor | None = None,
    group_weight: Tensor | None = None,
) -> PairIndex:
    """Select pairs and weight them.

    Args:
        pairs: (Q, 2) int64, all valid (chosen, rejected) response indices, both of one group.
        ranks: (R,) float, 1 is best, nan unknown.
        group_of_response: (R,) int64.
        scheme: `all` pairs; `hardest`: one pair per group, the largest difference in depth (best against worst), the
            first in the given order among equals; `adjacent`: pairs with no response between them, i.e. no x with
            chosen over x and x over rejected; `best_vs_rest`: pairs whose chosen response has the group's best depth
            among chosen ones.
        weighting: `pair`: every pair counts 1; `query`: the selected pairs of a group share a weight of 1.
        ties: (Z, 2) int64, responses of equal rank that enter, too: both ways round at half a pair's weight each, so
            that the two must come out equal.
        group_weight: (G,) float, multiplied into the pairs' weights; None is 1 everywhere. Pairs of groups with
            weight 0 stay, at weight 0.

    Returns: PairIndex with at most Q pairs in the order of `pairs`, then 2 Z of ties.
    Raises: ConfigError for an unknown scheme or weighting; ValueError where `pairs` is not (Q, 2).
    """
    require_choice("the pair scheme", tuple(_SCHEMES), scheme=scheme)
    require_choice("the pair scheme", get_args(Weighting), weighting=weighting)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (Q, 2), got {tuple(pairs.shape)}")
    pairs = pairs[_SCHEMES[scheme](pairs, ranks, group_of_response)]
    weight = torch.ones(len(pairs), device=pairs.device)
    if ties is not None:
        pairs = torch.cat((pairs, ties, ties.flip(1)))
        weight = torch.cat((weight, torch.full((2 * len(ties),), 0.5, device=pairs.device)))
    chosen, rejected = pairs[:, 0], pairs[:, 1]
    group = group_of_response[chosen]
    if weighting == "query":
        weight = weight / _per_group(ranks, 0.0).index_add(0, group, weight)[group]
    if group_weight is not None:
        weight = weight * group_weight.float()[group]
    return PairIndex(chosen=chosen, rejected=rejected, group=group, weight=weight)


def depths(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    """Each response's depth (R,) float, smaller is better; see this file's header for the rule."""
    one = torch.ones(len(pairs), device=pairs.device)
    balance = torch.zeros(len(ranks), device=pairs.device)
    balance = balance.index_add(0, pairs[:, 1], one).index_add(0, pairs[:, 0], -one)
    paired = torch.zeros(len(ranks), dtype=torch.bool, device=pairs.device)
    paired[pairs.flatten()] = True
    # One slot per response is always enough for the groups, and spares reading the largest group id back from a GPU.
    unranked = _per_group(balance, 0.0).index_add(0, group_of_response, (paired & ranks.isnan()).float())
    return torch.where(unranked[group_of_response] > 0, balance, ranks.float())


def listed_ranks(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    """Ranks (R,) for losses over a whole ranking: the depth, nan for a response that is in no pair."""
    paired = torch.zeros(len(ranks), dtype=torch.bool, device=pairs.device)
    paired[pairs.flatten()] = True
    return torch.where(paired, depths(pairs, ranks, group_of_response), torch.nan)


def tied_pairs(ranks: Tensor, group_of_response: Tensor) -> Tensor:
    """Every two responses of a group that share a rank (Z, 2), each pair once; ranks (R,), nan: unknown, never tied."""
    same = (ranks[:, None] == ranks[None, :]) & (group_of_response[:, None] == group_of_response[None, :])
    return same.triu(1).nonzero()


def ordered_pairs(ranks: Tensor, group_of_response: Tensor) -> Tensor:
    """Every two responses of a group whose ranks differ, better one first (Q, 2); ranks (R,), smaller is better."""
    above = (ranks[:, None] < ranks[None, :]) & (group_of_response[:, None] == group_of_response[None, :])
    return above.nonzero()


def _per_group(like: Tensor, value: float) -> Tensor:
    return torch.full((len(like),), value, device=like.device)


def _all(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    return torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)


def _hardest(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    depth = depths(pairs, ranks, group_of_response)
    difference = depth[pairs[:, 1]] - depth[pairs[:, 0]]
    group = group_of_response[pairs[:, 0]]
    largest = _per_group(ranks, -torch.inf).scatter_reduce(0, group, difference, "amax")
    position = torch.arange(len(pairs), device=pairs.device, dtype=torch.float64)
    candidate = torch.where(difference == largest[group], position, torch.inf)
    first = _per_group(ranks, torch.inf).double().scatter_reduce(0, group, candidate, "amin")
    return position == first[group]


def _adjacent(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    above = torch.zeros(len(ranks), len(ranks), device=pairs.device)
    above[pairs[:, 0], pairs[:, 1]] = 1
    between = above @ above
    return between[pairs[:, 0], pairs[:, 1]] == 0


def _best_vs_rest(pairs: Tensor, ranks: Tensor, group_of_response: Tensor) -> Tensor:
    depth = depths(pairs, ranks, group_of_response)[pairs[:, 0]]
    group = group_of_response[pairs[:, 0]]
    best = _per_group(ranks, torch.inf).scatter_reduce(0, group, depth, "amin")
    return depth == best[group]


_SCHEMES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "all": _all,
    "hardest": _hardest,
    "adjacent": _adjacent,
    "best_vs_rest": _best_vs_rest,
}
