"""How a packed row is laid out for an attention back end, and who may attend to whom there.

Follows: the tree attention of prefix-shared preference training (arXiv 2410.20305). Three layouts say the same thing:

- `grouped`: one group per batch entry, padded to the longest. Only branch tokens need a mask: a prefix is plain causal
  attention, and is computed as such (see `mmrlhf.models.attention`).
- `single_row`: all groups behind one another, with a FlexAttention block mask that skips whatever nobody attends to.
- `segmented`: all groups behind one another, with no mask but the lengths of prefixes and branches; not for branches
  that are read in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mmrlhf.models.cascade import Segments, segments_of
from mmrlhf.models.masks import AttentionPattern, attention_masks, group_masks, shortest_prefix, slot_in_group
from mmrlhf.tensors import PackedBatch

BLOCK = 128


@dataclass(frozen=True)
class Layout:
    """Arguments of a stock forward, and where each token of the packed row is in them.

    ids (B, L); positions (A, B, L); mask: who may attend to whom, without rows where `segments` say it; entry, slot
    (T,): place of each token.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | dict[str, Tensor] | BlockMask
    entry: Tensor
    slot: Tensor
    segments: Segments | None = None

    def unpack(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, D) -> (T, D) in the order of the packed row."""
        return hidden[self.entry, self.slot]


def grouped(batch: PackedBatch, pattern: AttentionPattern, dtype: torch.dtype) -> Layout:
    """One group per batch entry.

    Where all layers are plain causal attention, the mask (G, 1, L - P, L) of the given type is added to the attention
    scores of the last L - P slots, P being the shortest prefix: 0 where a token may look, else -inf. The P slots before
    them have no rows. Other patterns get their masks whole.
    """
    entry, slot = batch.group_of_token, slot_in_group(batch)
    shape = (len(batch.keys), int(slot.max()) + 1)
    if not pattern.plain:
        return _place(batch, shape, attention_masks(batch, pattern), entry, slot)
    visible = group_masks(batch, shortest_prefix(batch))
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
    return _place(batch, shape, mask[:, None], entry, slot)


def single_row(batch: PackedBatch) -> Layout:
    """All groups in one row, filled up to a bucket of lengths, so that few shapes are ever compiled."""
    entry, slot = torch.zeros_like(batch.group_of_token), torch.arange(batch.num_tokens, device=batch.input_ids.device)
    length = bucket_length(batch.num_tokens)
    return _place(batch, (1, length), block_mask(batch, length), entry, slot)


def segmented(batch: PackedBatch) -> Layout:
    """All groups in one row, as they lie in the batch, and how it is cut."""
    entry, slot = torch.zeros_like(batch.group_of_token), torch.arange(batch.num_tokens, device=batch.input_ids.device)
    nothing = batch.input_ids.new_zeros((1, 1, 0, batch.num_tokens))
    placed = _place(batch, (1, batch.num_tokens), nothing, entry, slot)
    return replace(placed, segments=segments_of(batch))


def _place(
    batch: PackedBatch,
    shape: tuple[int, int],
    mask: Tensor | dict[str, Tensor] | BlockMask,
    entry: Tensor,
    slot: Tensor,
) -> Layout:
    ids = batch.input_ids.new_zeros(shape).index_put((entry, slot), batch.input_ids)
    positions = batch.position_ids.new_zeros((batch.position_ids.shape[0], *shape))
    positions[:, entry, slot] = batch.position_ids
    return Layout(ids, positions, mask, entry, slot)


def bucket_length(num_tokens: int) -> int:
    """Round up to a multiple of the block, four lengths to a doubling: at most a quarter more than asked for."""
    step = max(BLOCK, 2 ** (max(num_tokens - 1, 1).bit_length() - 1) // 4)
    return -(-num_tokens // step) * step


def block_mask(batch: PackedBatch, length: int) -> BlockMask:
    """FlexAttention's mask of a packed row, filled up to `length` with tokens that see only each other.

    Which blocks are empty, full or mixed follows from which segments (prefixes, contexts and the rest of branches) each
    block touches, so nothing of size (T, T) is ever made.
    """
    segment, group, branch, shared = _segments(batch, length)
    num_blocks = length // BLOCK
    num_segments = int(group.shape[0])
    touches = torch.zeros(num_blocks, num_segments, device=segment.device)
    touches[torch.arange(length, device=segment.device) // BLOCK, segment] = 1.0
    allowed = ((group[:, None] == group) & (shared | (branch[:, None] == branch))).float()
    earlier = torch.ones(num_blocks, num_blocks, dtype=torch.bool, device=segment.device).tril(-1)
    some = (touches @ allowed @ touches.T > 0) & earlier
    every = some & (touches @ (1 - allowed) @ touches.T == 0)
    # On the diagonal every token sees itself and nothing behind it: always mixed.
    mixed = (some & ~every) | torch.eye(num_blocks, dtype=torch.bool, device=segment.device)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        asking, asked = segment[q], segment[k]
        seen = (group[asking] == group[asked]) & (shared[asked] | (branch[asking] == branch[asked]))
        return (q >= k) & seen

    return BlockMask.from_kv_blocks(
        *_columns(mixed), *_columns(every), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def _segments(batch: PackedBatch, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segment of each token (length,); group, branch, and whether it is shared, of each segment.

    Segment g < G is the prefix of group g, then come what branches share, the rest of them, and what fills the row up.
    """
    num_groups, num_branches, device = len(batch.keys), batch.num_responses, batch.input_ids.device
    segment = torch.full((length,), num_groups + 2 * num_branches, device=device)
    in_branch = batch.branch_of_token + num_groups - 1 + torch.where(batch.shared, 0, num_branches)
    segment[: batch.num_tokens] = torch.where(batch.branch_of_token == 0, batch.group_of_token, in_branch)
    of_prefix, of_branch = torch.arange(num_groups, device=device), 1 + torch.arange(num_branches, device=device)
    none = torch.tensor([-1], device=device)
    group = torch.cat([of_prefix, batch.group_of_response, batch.group_of_response, none])
    branch = torch.cat([torch.zeros_like(of_prefix), of_branch, of_branch, none])
    shared = torch.arange(len(group), device=device) < num_groups + num_branches
    return segment, group, branch, shared


def _columns(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen key blocks of each query block (1, 1, B), and their indices, chosen ones first (1, 1, B, B)."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
