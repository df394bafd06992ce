"""Who may attend to whom in a packed row, as the masks that a family's layers want.

A token sees earlier tokens of its own group's prefix and of its own branch, and, where branches are read in turn, of
the contexts of branches before it (`PackedBatch.shared`). Two particularities belong to families: sliding-window layers
count tokens of the response's own sequence (what it sees and itself), not of the row; and Gemma 3 lets the tokens of
one picture see each other both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrlhf.tensors import PackedBatch

FULL, SLIDING = "full_attention", "sliding_attention"
# Families whose stock forward makes the tokens of one picture see each other (it reads `token_type_ids`).
PICTURES_SEE_THEMSELVES = ("gemma3", "shieldgemma2")


@dataclass(frozen=True)
class AttentionPattern:
    """Which masks a language model's layers want.

    Attributes:
        kinds: kinds of layers, each of which gets its own mask; empty where all layers share one.
        window: tokens that a sliding layer sees, itself included; None without such layers.
        image_token: id of the tokens that see each other both ways inside one picture; None without.
    """

    kinds: tuple[str, ...] = ()
    window: int | None = None
    image_token: int | None = None

    @property
    def plain(self) -> bool:
        """Whether all layers are causal attention to everything before."""
        return self.window is None and self.image_token is None


def attention_pattern(config: Any) -> AttentionPattern:
    """Read the pattern off a model's configuration."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    # Without a list of kinds a window is meant for every layer (Mistral).
    slides = SLIDING in kinds if kinds else True
    window = getattr(text, "sliding_window", None) if slides else None
    both_ways = config.model_type in PICTURES_SEE_THEMSELVES
    return AttentionPattern(
        kinds=tuple(sorted(kinds)) if SLIDING in kinds else (),
        window=window,
        image_token=config.image_token_id if both_ways else None,
    )


def attention_masks(batch: PackedBatch, pattern: AttentionPattern) -> Tensor | dict[str, Tensor]:
    """The masks of a row, one block per group (G, 1, L, L) bool; by kind of layer where kinds differ."""
    full = group_masks(batch)
    if pattern.image_token is not None:
        picture = _by_group(batch, picture_of_token(batch, pattern.image_token), fill=-1)
        full |= (picture[:, :, None] == picture[:, None, :]) & (picture[:, :, None] >= 0)
    index = _by_group(batch, index_in_sequence(batch), fill=0)
    return _by_kind(full, index[:, :, None] - index[:, None, :], pattern)


def prefix_masks(valid: Tensor, ids: Tensor, pattern: AttentionPattern) -> Tensor | dict[str, Tensor]:
    """The masks of prefixes that are read into a cache as one padded batch.

    Args:
        valid: which tokens are no padding (B, S); ids: the tokens (B, S).

    Returns:
        who may attend to whom (B, 1, S, S) bool; by kind of layer where kinds differ.
    """
    index = valid.cumsum(dim=1) - 1
    of_query = index[:, :, None]
    full = valid[:, None, :].bool() & (index[:, None, :] <= of_query)
    if pattern.image_token is not None:
        inside = ids == pattern.image_token
        picture = (inside & ~torch.nn.functional.pad(inside, (1, 0))[:, :-1]).cumsum(dim=1)
        full |= (picture[:, :, None] == picture[:, None, :]) & inside[:, :, None] & inside[:, None, :]
    return _by_kind(full, of_query - index[:, None, :], pattern)


def step_masks(
    owner: Tensor, place: Tensor, reach: Tensor, pattern: AttentionPattern, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The masks of a step of generation whose rows hold a group each, its branches side by side.

    Args:
        owner: the branch of every slot of the cache (G, S), the step's own slots last; 0: what branches share, -1:
            padding.
        place: each slot's place in its branch's own sequence (G, S).
        reach: of the step's own slots (G, Q), up to which place they see what is shared.

    Returns:
        what is added to the attention scores (G, 1, Q, S): 0 for earlier tokens of the own prefix and branch, -inf for
        others; by kind of layer where kinds differ. Padding sees padding, so that no row is empty.
    """
    num_queries = reach.shape[1]
    own, at = owner[:, -num_queries:, None], place[:, -num_queries:, None]
    shared = (owner[:, None] == 0) & (place[:, None] < reach[:, :, None])
    full = (shared | (owner[:, None] == own)) & (place[:, None] <= at)
    masks = _by_kind(full, at - place[:, None], pattern)
    if isinstance(masks, dict):
        return {kind: _added(mask, dtype) for kind, mask in masks.items()}
    return _added(masks, dtype)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def group_masks(batch: PackedBatch, first: int = 0) -> Tensor:
    """Who may attend to whom, a block per group (G, L - first, L) bool: earlier tokens of its branch, and shared ones.

    Slots behind a group's last token (branch -1) see what is shared and each other, so that no row of the mask is
    empty; nothing sees them, because they come last.

    Args:
        first: the first slot that has a row.
    """
    branch = _by_group(batch, batch.branch_of_token, fill=-1)
    visible = _by_group(batch, batch.shared, fill=0)[:, None, :] | (branch[:, first:, None] == branch[:, None, :])
    return visible.tril(diagonal=first)


def shortest_prefix(batch: PackedBatch) -> int:
    """The fewest tokens that a group of the row has before its first branch."""
    of_prefix = batch.group_of_token[batch.branch_of_token == 0]
    return int(torch.bincount(of_prefix, minlength=len(batch.keys)).min())


def slot_in_group(batch: PackedBatch) -> Tensor:
    """Each token's index inside its own group (T,)."""
    lengths = torch.bincount(batch.group_of_token, minlength=len(batch.keys))
    starts = lengths.cumsum(0) - lengths
    return torch.arange(batch.num_tokens, device=lengths.device) - starts[batch.group_of_token]


def index_in_sequence(batch: PackedBatch) -> Tensor:
    """Each token's index in its response's own sequence: how many it sees before it, shared and of its branch (T,)."""
    slot = slot_in_group(batch)
    # Of the tokens before it in the row, those that it does not see belong to other branches and are not shared. Tokens
    # of a branch are neighbours, and what it shares comes first: all that lie before its first token.
    hidden = (~batch.shared).cumsum(0) - (~batch.shared).int()
    branch = batch.branch_of_token
    before = torch.full((int(branch.max()) + 1,), batch.num_tokens, device=slot.device)
    before = before.scatter_reduce(0, branch, hidden, "amin")
    group_start = torch.full((len(batch.keys),), batch.num_tokens, device=slot.device)
    group_start = group_start.scatter_reduce(0, batch.group_of_token, hidden, "amin")
    unseen = torch.where(branch == 0, hidden, before[branch]) - group_start[batch.group_of_token]
    return slot - unseen


def picture_of_token(batch: PackedBatch, image_token: int) -> Tensor:
    """Number of the picture that a token belongs to: its run of image tokens; -1 for other tokens (T,)."""
    inside = batch.input_ids == image_token
    # A picture at the end of one group does not go on in the next.
    edge = batch.group_of_token.diff(prepend=batch.group_of_token[:1]) != 0
    before = torch.cat([inside.new_zeros(1), inside[:-1]]) & ~edge
    return torch.where(inside, (inside & ~before).cumsum(0), -1)


def _by_kind(full: Tensor, distance: Tensor, pattern: AttentionPattern) -> Tensor | dict[str, Tensor]:
    """Add the window to a mask (B, Q, K), given each key's distance from the query, as far as layers have one."""
    if pattern.window is None:
        return full[:, None]
    sliding = (full & (distance < pattern.window))[:, None]
    return {FULL: full[:, None], SLIDING: sliding} if pattern.kinds else sliding


def _by_group(batch: PackedBatch, values: Tensor, *, fill: int) -> Tensor:
    """Values of tokens (T,) as one row per group (G, L)."""
    group, slot = batch.group_of_token, slot_in_group(batch)
    rows = values.new_full((len(batch.keys), int(slot.max()) + 1), fill)
    rows[group, slot] = values
    return rows
