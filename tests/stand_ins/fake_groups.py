"""Groups without tokens of meaning, media or shards: enough to see which group arrives where."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mmrlhf.errors import DataError
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.tensors import Branch, EncodedGroup
from mmrlhf.types import PreferenceGroup, Response


@dataclass
class FakeIndex:
    """Group i has key `g<i>`, two responses and 4 + i % 5 tokens; five groups share a shard.

    A third of the groups (i % 3 == 0) are of category `rare`, the others `common`; no media; sets: `sets[i]`, if given.
    """

    num_groups: int
    digest: str = "digest"
    sets: tuple[str, ...] = ()
    remote: Any = None
    entries: list[SimpleNamespace] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [SimpleNamespace(key=f"g{i}", tokens=4 + i % 5) for i in range(self.num_groups)]

    def __len__(self) -> int:
        return self.num_groups

    def column(self, name: str) -> np.ndarray:
        made = {"shard": lambda i: f"s{i // 5}", "category": lambda i: "common" if i % 3 else "rare"}
        return np.array([made[name](i) for i in range(self.num_groups)])

    def set_names(self) -> np.ndarray:
        return np.array(self.sets or [""] * self.num_groups)

    def modality(self) -> np.ndarray:
        return np.array(["text"] * self.num_groups)

    def read(self, row: int) -> PreferenceGroup:
        return PreferenceGroup(f"g{row}", "?", (Response("a", rank=1), Response("b", rank=2)))


@dataclass
class FakeEncoder:
    """Encodes group i as tokens of value i; `damaged` keys raise DataError, `broken` keys a programming error.

    short: so many times too short are the estimates of `short_keys`.
    """

    damaged: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    short_keys: frozenset[str] = frozenset()
    short: int = 3
    in_turn: bool = False

    def estimate_tokens(self, entry: SimpleNamespace) -> int:
        return max(1, entry.tokens // self.short) if entry.key in self.short_keys else entry.tokens

    def surely_fits(self, entry: SimpleNamespace) -> bool:
        return True

    def __call__(self, group: PreferenceGroup) -> EncodedGroup:
        if group.key in self.damaged:
            raise DataError("image cannot be decoded", where=group.key)
        if group.key in self.broken:
            raise NameError("name 'x' is not defined")
        number = int(group.key[1:])
        length = 4 + number % 5
        branches = tuple(
            Branch(torch.full((1,), number), torch.full((1, 1), length - 2), torch.tensor([True]), response.hash)
            for response in group.responses
        )
        return EncodedGroup(
            key=group.key,
            prefix_ids=torch.full((length - 2,), number),
            prefix_positions=torch.arange(length - 2)[None],
            branches=branches,
            media={},
            num_images=0,
            num_videos=0,
            pairs=group.ranked_pairs(),
            columns={"rank": torch.tensor([1.0, 2.0])},
            in_turn=self.in_turn,
        )


def make_dataset(
    num_groups: int, *tables: SideCar, digest: str = "digest", cache_gib: float = 0.0, **encoder
) -> GroupDataset:
    index: Any = FakeIndex(num_groups, digest)
    return GroupDataset(index, FakeEncoder(**encoder), tables, cache_gib=cache_gib)  # pyright: ignore
