"""Who may attend to whom: both layouts against the rule spelled out token by token, and against torch's own builder."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from mmrlhf.models.cascade import segments_of
from mmrlhf.models.layout import BLOCK, block_mask, bucket_length, grouped, segmented, single_row
from mmrlhf.models.masks import AttentionPattern, group_masks, index_in_sequence, shortest_prefix
from mmrlhf.tensors import Branch, EncodedGroup, PackedBatch
from mmrlhf.tokens.packing import pack_groups

# A group is its prefix's length and its branches' lengths.
GROUPS = st.lists(
    st.tuples(st.integers(1, 300), st.lists(st.integers(1, 200), min_size=1, max_size=4)), min_size=1, max_size=3
)


def batch_of(sizes: list[tuple[int, list[int]]], in_turn: bool = False) -> PackedBatch:
    """A packed row of groups with these lengths; token ids count up over the row.

    In turn, the first half of each branch is its context.
    """
    groups, start = [], 0
    for prefix, branches in sizes:
        pieces = []
        for length in (prefix, *branches):
            pieces.append(torch.arange(start, start + length))
            start += length
        made = tuple(
            Branch(ids, prefix + torch.arange(len(ids))[None], torch.arange(len(ids)) >= context(len(ids)), str(start))
            for ids in pieces[1:]
        )
        groups.append(
            EncodedGroup(
                "k",
                pieces[0],
                torch.arange(prefix)[None],
                made,
                {},
                0,
                0,
                (),
                {"rank": torch.ones(len(made))},
                in_turn=in_turn,
            )  # fmt: skip
        )
    return pack_groups(groups)


def context(length: int) -> int:
    return (length + 1) // 2


def rule(batch: PackedBatch, sizes: list[tuple[int, list[int]]], in_turn: bool) -> torch.Tensor:
    """Who may see whom (T, T): earlier tokens of one's prefix and branch, in turn also contexts of earlier branches."""
    branch, group = batch.branch_of_token, batch.group_of_token
    inside = torch.cat([torch.arange(length) for prefix, branches in sizes for length in (prefix, *branches)])
    lengths = torch.cat([torch.full((n,), n) for prefix, branches in sizes for n in (prefix, *branches)])
    open_to_others = (branch == 0) | (in_turn & (inside < (lengths + 1) // 2))
    seen = open_to_others[None, :] | (branch[None, :] == branch[:, None])
    return (seen & (group[None, :] == group[:, None])).tril()


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=3)), min_size=1, max_size=3),
    st.booleans(),
)
def test_group_masks_say_the_rule(sizes: list[tuple[int, list[int]]], in_turn: bool) -> None:
    """From the shortest prefix on, as written; before it, every group's tokens are prefix tokens: plain causal."""
    batch = batch_of(sizes, in_turn)
    allowed = rule(batch, sizes, in_turn)
    layout, masks = grouped(batch, AttentionPattern(), torch.float32), group_masks(batch, shortest_prefix(batch))
    shared = layout.ids.shape[1] - masks.shape[1]
    assert shared == min(prefix for prefix, _ in sizes)
    torch.testing.assert_close(layout.mask[:, 0] == 0, masks)
    for query in range(batch.num_tokens):
        entry, slot = int(layout.entry[query]), int(layout.slot[query])
        for key in range(batch.num_tokens):
            if layout.entry[key] != entry:
                continue
            place = int(layout.slot[key])
            found = bool(masks[entry, slot - shared, place]) if slot >= shared else place <= slot
            assert found == allowed[query, key]
    assert masks.any(dim=-1).all()


@settings(max_examples=20)
@given(GROUPS, st.booleans())
def test_block_mask_is_what_torch_builds_from_the_rule(sizes: list[tuple[int, list[int]]], in_turn: bool) -> None:
    """Empty, full and mixed blocks equal those that torch finds by trying every pair of tokens."""
    batch = batch_of(sizes, in_turn)
    length = bucket_length(batch.num_tokens)
    ours = block_mask(batch, length)
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK)
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), check_dtype=False)
    numbers = torch.arange(batch.num_tokens)
    query, key = torch.meshgrid(numbers, numbers, indexing="ij")
    torch.testing.assert_close(ours.mask_mod(query, query, query, key), rule(batch, sizes, in_turn))


@settings(max_examples=20)
@given(GROUPS, st.booleans())
def test_windows_count_what_a_token_sees(sizes: list[tuple[int, list[int]]], in_turn: bool) -> None:
    batch = batch_of(sizes, in_turn)
    assert index_in_sequence(batch).tolist() == (rule(batch, sizes, in_turn).sum(1) - 1).tolist()


@given(st.integers(1, 200_000))
def test_buckets_are_few_and_close(num_tokens: int) -> None:
    length = bucket_length(num_tokens)
    assert num_tokens <= length <= max(BLOCK, 1.25 * num_tokens + BLOCK) and length % BLOCK == 0
    assert bucket_length(length) == length


def test_few_lengths_up_to_a_large_budget() -> None:
    assert len({bucket_length(n) for n in range(1, 32769, 7)}) <= 28


@settings(max_examples=15)
@given(GROUPS)
def test_segments_are_the_lengths_of_prefixes_and_branches(sizes: list[tuple[int, list[int]]]) -> None:
    """Neighbouring groups whose responses have the same number in their group are kept apart."""
    segments = segments_of(batch_of(sizes))
    assert segments.prefixes.lengths == tuple(prefix for prefix, _ in sizes)
    assert segments.branches.lengths == tuple(length for _, branches in sizes for length in branches)
    assert segments.answers.lengths == tuple(sum(branches) for _, branches in sizes)
    row = torch.arange(sum(segments.all.lengths))
    assert segments.all.starts.tolist()[-1] == len(row)
    torch.testing.assert_close(segments.whole(*segments.parted(row)), row)


def test_all_layouts_give_the_row_back() -> None:
    batch = batch_of([(3, [2, 4]), (5, [1])])
    for layout in (grouped(batch, AttentionPattern(), torch.float32), single_row(batch), segmented(batch)):
        hidden = torch.stack([layout.ids, layout.positions[0]], dim=-1)
        torch.testing.assert_close(layout.unpack(hidden), torch.stack([batch.input_ids, batch.position_ids[0]], dim=-1))
