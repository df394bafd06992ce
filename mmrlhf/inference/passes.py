"""One pass over groups without gradients: what score, reference and evaluate have in common.

Rows are read in windows sorted by length, so that the groups of one batch are about equally long; every batch is
encoded (in worker processes if wanted) and scored by the same packed forward as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.feed.plan import micro_batches
from mmrlhf.feed.prefetch import batch_uses, begin_prefetch
from mmrlhf.feed.preflight import look_ahead
from mmrlhf.feed.shared_memory import PREFETCH_FACTOR, require_shared_memory
from mmrlhf.models.decoding_rows import Continuation
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup, Response

Encode = Callable[[PreferenceGroup], EncodedGroup]
Prepare = Callable[[PreferenceGroup], PreferenceGroup]
BATCHES_PER_WINDOW = 16
# Keys and values of a token take a fraction of what a packed forward needs for one.
CACHE_PER_BUDGET = 4
T = TypeVar("T")


@dataclass(frozen=True)
class GroupScores:
    """What a forward says about one group, on the CPU.

    logprob (K,), num_tokens (K,); cut (K,), tokens by which responses were shortened; token_logprob: of each response,
    its tokens' log-probabilities; reward (K,) and dimensions (K, D), the head's other scores, or None without a head.
    """

    logprob: Tensor
    num_tokens: Tensor
    cut: Tensor
    token_logprob: tuple[Tensor, ...]
    reward: Tensor | None = None
    dimensions: Tensor | None = None


@torch.inference_mode()
def forward_groups(model: PackedModel, groups: Sequence[EncodedGroup], *, token_budget: int) -> list[GroupScores]:
    """Score encoded groups in packed micro-batches under a token budget; results in the order of `groups`."""
    found: list[GroupScores | None] = [None] * len(groups)
    for members in micro_batches([group.num_tokens for group in groups], token_budget=token_budget, world_size=1):
        if not members:
            continue
        chosen = [groups[number] for number in members]
        batch = pack_groups(chosen).to(model.device)
        with autocast(model.settings, model.device):
            outputs = model(batch)
            scores = model.scores(outputs).float().cpu() if model.score_head is not None else None
        counts = [len(group.branches) for group in chosen]
        logprob = outputs.logprob.float().cpu().split(counts)
        num_tokens = outputs.num_tokens.float().cpu().split(counts)
        tokens = iter(outputs.token_logprob.float().cpu().split(outputs.num_tokens.long().tolist()))
        for number, own, count in zip(members, logprob, num_tokens, strict=True):
            cut = torch.tensor([float(branch.truncated) for branch in groups[number].branches])
            found[number] = GroupScores(own, count, cut, tuple(islice(tokens, len(cut))))
        if scores is not None:
            for number, each in zip(members, scores.split(counts), strict=True):
                found[number] = replace(cast(GroupScores, found[number]), reward=each[:, 0], dimensions=each[:, 1:])
    return cast("list[GroupScores]", found)


def batches_by_length(
    rows: Sequence[int], lengths: Sequence[int], *, groups_per_batch: int, batches_per_window: int = BATCHES_PER_WINDOW
) -> list[list[int]]:
    """Cut rows into batches of similar length; each window of the given order is sorted by itself, longest first.

    Args:
        rows: row numbers of the index.
        lengths: each row's estimated length, in the same order.
    """
    window = groups_per_batch * batches_per_window
    batches = []
    for start in range(0, len(rows), window):
        order = sorted(range(start, min(start + window, len(rows))), key=lambda i: -lengths[i])
        ordered = [int(rows[i]) for i in order]
        batches += [ordered[i : i + groups_per_batch] for i in range(0, len(ordered), groups_per_batch)]
    return batches


def encoded_batches(
    index: Index,
    rows: Sequence[int] | np.ndarray,
    encoder: Encoder,
    encode: Encode,
    *,
    groups_per_batch: int,
    quarantine: Quarantine,
    num_workers: int = 0,
    prepare: Prepare | None = None,
    media: bool = True,
    preflight: str = "quarantine",
) -> Iterator[list[tuple[PreferenceGroup, EncodedGroup]]]:
    """Read and encode rows of an index, a batch of groups of similar length at a time; remote shards come ahead.

    Groups come out as they were read. Queries that cannot be read or encoded go into the quarantine and are not
    yielded; a batch may be empty. Those that will not fit or be refused are found before the first batch.

    Args:
        encoder: estimates lengths.
        encode: `encoder` itself, or `encoder.context` for what comes before the assistant turn.
        num_workers: processes that read and encode ahead; 0 does it here.
        prepare: changes a group before it is encoded (`PreferenceGroup.without_media`).
        media: false: groups are read as text alone, their media without data.
        preflight: `quarantine` or `error` (`Runtime.preflight`).

    Raises:
        ConfigError: shared memory does not hold what the workers would.
        DataError: more queries cannot be used than the quarantine's budget, or any with `preflight=error`.
    """
    look_ahead(index, rows, encoder, prepare=prepare, with_answer=encode is encoder).settle(quarantine, preflight)
    rows = [int(row) for row in rows if index.entries[int(row)].key not in quarantine]
    lengths = [encoder.estimate_tokens(index.entries[row]) for row in rows]
    batches = batches_by_length(rows, lengths, groups_per_batch=groups_per_batch)
    asked = _Encoded(index, encode, prepare, media)
    if num_workers and batches:
        group = next(
            (found for _, found in map(asked.__getitem__, batches[0]) if isinstance(found, EncodedGroup)), None
        )
        if group is not None:
            require_shared_memory(group, groups_per_item=groups_per_batch, num_workers=num_workers)
    loader = DataLoader(
        asked,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
    )
    read = iter(loader)
    ahead = begin_prefetch(index, partial(batch_uses, batches))  # behind the workers, which may be forks
    try:
        for number, batch in enumerate(read):
            if ahead is not None:
                ahead.advance(number)
            for key, error in (refused for refused in batch if isinstance(refused[1], DataError)):
                quarantine.add(key, error)
            quarantine.check("what a pass reads")
            yield [found for found in batch if not isinstance(found[1], DataError)]
    finally:
        if ahead is not None:
            ahead.stop()


class _Encoded(Dataset):
    def __init__(self, index: Index, encode: Encode, prepare: Prepare | None = None, media: bool = True) -> None:
        self.index, self.encode, self.prepare, self.media = index, encode, prepare, media

    def __getitem__(self, row: int) -> tuple[PreferenceGroup, EncodedGroup] | tuple[str, DataError]:
        try:
            group = self.index.read(row, media=self.media)
            return group, self.encode(group if self.prepare is None else self.prepare(group))
        except MissingRowError:
            raise
        except DataError as error:
            return self.index.entries[row].key, error


def encode_usable(
    groups: Mapping[T, PreferenceGroup], encode: Encode, quarantine: Quarantine | None
) -> dict[T, EncodedGroup]:
    """Encode groups under their own names; those that cannot be used go into the quarantine.

    Raises:
        DataError: a group cannot be used and there is no quarantine, or more than its budget.
    """
    found: dict[T, EncodedGroup] = {}
    for name, group in groups.items():
        try:
            found[name] = encode(group)
        except DataError as error:
            if quarantine is None or isinstance(error, MissingRowError):
                raise
            quarantine.add(group.key, error)
            quarantine.check("what a pass reads")
    return found


def read_usable(
    index: Index, rows: Iterable[int], encode: Encode, quarantine: Quarantine
) -> list[tuple[PreferenceGroup, EncodedGroup]]:
    """Read and encode a few rows, here and now; those that cannot be used go into the quarantine."""
    asked = _Encoded(index, encode)
    found = []
    for row in rows:
        group, encoded = asked[int(row)]
        if isinstance(group, str) or isinstance(encoded, DataError):
            quarantine.add(str(group), cast(DataError, encoded))
        else:
            found.append((group, encoded))
    return found


def decode_text(processor: Any, ids: Sequence[int]) -> str:
    """Turn generated token ids into text without special tokens (a placeholder in it could not be encoded again)."""
    return processor.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def with_continuations(context: EncodedGroup, written: Sequence[Continuation]) -> EncodedGroup:
    """A context of one branch with what was written behind it: the tokens themselves are labels, ends included.

    Log-probabilities of these are what a KL between policies is estimated from; their text, tokenized again, may be
    other tokens.
    """
    (start,) = context.branches
    branches = []
    for answer in written:
        added = torch.tensor([*answer.ids, *([] if answer.end is None else [answer.end])], dtype=torch.int64)
        behind = start.positions[:, -1:] + 1 + torch.arange(len(added))
        branches.append(
            replace(
                start,
                ids=torch.cat([start.ids, added]),
                positions=torch.cat([start.positions, behind], dim=1),
                labels=torch.arange(len(start.ids) + len(added)) >= len(start.ids),
            )
        )
    nothing = {name: torch.full((len(branches),), float("nan")) for name in context.columns}
    return replace(context, branches=tuple(branches), pairs=(), columns=nothing)


def with_responses(group: PreferenceGroup, texts: Sequence[str]) -> PreferenceGroup:
    """The same query with other, unranked responses."""
    return replace(group, responses=tuple(Response(text) for text in texts), pairs=())
