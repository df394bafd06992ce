"""EncodedGroup -> PackedBatch: several groups behind one another in one row, without padding.

Row layout per group: `[prefix][branch 1]...[branch K]`. Position ids of every branch restart where the prefix ended;
who may attend to whom follows from (group, branch) of each token, so the model sees the same tokens as in K separate
rows. Dao-style prefix sharing for preference pairs has been published for text (arXiv 2410.20305); here a group holds
media and any number of responses. Branches that are read in turn (`mmrlhf.tokens.in_turn`) share their contexts, too,
and position ids run on over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mmrlhf.tensors import EncodedGroup, PackedBatch

T = TypeVar("T")


def pack_groups(groups: Sequence[EncodedGroup]) -> PackedBatch:
    """Pack encoded groups into one row (shapes: see `PackedBatch`).

    Raises:
        ValueError: for an empty sequence, or groups whose columns differ.
    """
    if not groups:
        raise ValueError("pack_groups needs at least one group")
    names = set(groups[0].columns)
    if any(set(group.columns) != names for group in groups):
        raise ValueError("groups in one row must carry the same columns")
    input_ids = torch.cat([part for group in groups for part in (group.prefix_ids, *(b.ids for b in group.branches))])
    branch_of_token = _branch_of_token(groups)
    labels = _label_indices(groups, input_ids, branch_of_token)
    counts = torch.tensor([len(group.branches) for group in groups])
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.cat(
            [part for group in groups for part in (group.prefix_positions, *group.row_positions)],
            dim=1,
        ),
        group_of_token=torch.repeat_interleave(
            torch.arange(len(groups)), torch.tensor([group.num_tokens for group in groups])
        ),
        branch_of_token=branch_of_token,
        shared=_shared(groups),
        label_ids=labels[0],
        predict_at=labels[1],
        label_response=labels[2],
        last_token=labels[3],
        group_of_response=torch.repeat_interleave(torch.arange(len(groups)), counts),
        pairs=_pairs(groups),
        group_weight=torch.tensor([group.weight for group in groups]),
        media=tuple(group.media for group in groups),
        columns={name: torch.cat([group.columns[name] for group in groups]) for name in sorted(names)},
        keys=tuple(group.key for group in groups),
        response_hashes=tuple(branch.response_hash for group in groups for branch in group.branches),
        num_images=tuple(group.num_images for group in groups),
        num_videos=tuple(group.num_videos for group in groups),
        content=_content(groups),
        truncated_tokens=sum(branch.truncated for group in groups for branch in group.branches),
        branch_media=tuple(branch.media for group in groups for branch in group.branches),
        branch_images=tuple(branch.num_images for group in groups for branch in group.branches),
    )


def select_responses(batch: PackedBatch, keep: Tensor) -> PackedBatch:
    """The same row without some of its responses' branches; every group keeps its prefix and media.

    Not for branches that are read in turn: those that are kept would miss what they had read.

    Args:
        keep: (R,) bool; one response of every group at least.
    """
    token = (batch.branch_of_token == 0) | keep[(batch.branch_of_token - 1).clamp(min=0)]
    place, number = token.cumsum(0) - 1, keep.cumsum(0) - 1
    label, pair = keep[batch.label_response], keep[batch.pairs].all(1)
    branch, content = batch.branch_of_token[token], batch.content[keep]
    hashes = [name for name, kept in zip(batch.response_hashes, keep.tolist(), strict=True) if kept]
    return replace(
        batch,
        input_ids=batch.input_ids[token],
        position_ids=batch.position_ids[:, token],
        group_of_token=batch.group_of_token[token],
        branch_of_token=torch.where(branch > 0, 1 + number[(branch - 1).clamp(min=0)], 0),
        shared=batch.shared[token],
        label_ids=batch.label_ids[label],
        predict_at=place[batch.predict_at[label]],
        label_response=number[batch.label_response[label]],
        last_token=place[batch.last_token[keep]],
        group_of_response=batch.group_of_response[keep],
        pairs=number[batch.pairs[pair]],
        columns={name: values[keep] for name, values in batch.columns.items()},
        response_hashes=tuple(hashes),
        # the first of those that are kept
        content=(content[:, None] == content[None]).int().argmax(1),
        branch_media=_kept(batch.branch_media, keep),
        branch_images=_kept(batch.branch_images, keep),
    )


def _kept(values: tuple[T, ...], keep: Tensor) -> tuple[T, ...]:
    return tuple(value for value, kept in zip(values, keep.tolist(), strict=bool(values)) if kept)


def _content(groups: Sequence[EncodedGroup]) -> Tensor:
    """The first response of the group that reads the same (R,); each its own where nothing was cut."""
    content: list[int] = []
    for group in groups:
        offset, first = len(content), dict[object, int]()
        was_cut = any(branch.truncated for branch in group.branches)
        for number, branch in enumerate(group.branches):
            reads = tuple(branch.ids.tolist()) if was_cut and not branch.media else number
            content.append(first.setdefault(reads, offset + number))
    return torch.tensor(content)


def _branch_of_token(groups: Sequence[EncodedGroup]) -> Tensor:
    """0 for a prefix token, otherwise 1 + the response's index in the row (T,)."""
    lengths, numbers, response = [], [], 0
    for group in groups:
        lengths.append(len(group.prefix_ids))
        numbers.append(0)
        for branch in group.branches:
            response += 1
            lengths.append(len(branch.ids))
            numbers.append(response)
    return torch.repeat_interleave(torch.tensor(numbers), torch.tensor(lengths))


def _shared(groups: Sequence[EncodedGroup]) -> Tensor:
    """Whether later branches of its group see a token (T,)."""
    flags, lengths = [], []
    for group in groups:
        flags.append(True)
        lengths.append(len(group.prefix_ids))
        for branch, shared in zip(group.branches, group.num_shared, strict=True):
            flags += [True, False]
            lengths += [shared, len(branch.ids) - shared]
    return torch.repeat_interleave(torch.tensor(flags), torch.tensor(lengths))


def _label_indices(
    groups: Sequence[EncodedGroup], input_ids: Tensor, branch_of_token: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """label ids (N,), the row positions that predict them (N,), their responses (N,), last tokens (R,)."""
    labels, prefix_end, first, last = [], [], [], []
    start = 0
    for group in groups:
        labels.append(torch.zeros(len(group.prefix_ids), dtype=torch.bool))
        start += len(group.prefix_ids)
        prefix_last = start - 1
        for branch in group.branches:
            labels.append(branch.labels)
            prefix_end.append(prefix_last)
            first.append(start)
            start += len(branch.ids)
            last.append(start - 1)
    at = torch.cat(labels).nonzero()[:, 0]
    owner = branch_of_token[at] - 1
    # The first token of every branch is predicted by the prefix's last position, the others by their neighbour.
    predict_at = torch.where(at == torch.tensor(first)[owner], torch.tensor(prefix_end)[owner], at - 1)
    return input_ids[at], predict_at, owner, torch.tensor(last)


def _pairs(groups: Sequence[EncodedGroup]) -> Tensor:
    """All valid (chosen, rejected) response indices of the row (P, 2)."""
    rows, offset = [], 0
    for group in groups:
        rows += [(offset + chosen, offset + rejected) for chosen, rejected in group.pairs]
        offset += len(group.branches)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
