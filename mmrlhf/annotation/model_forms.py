"""A reward model's word in the form of an annotator's: a ranking by reward."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.annotation.filled_forms import Form
from mmrlhf.methods.pairing import REWARD
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar


def reward_forms(index: Index, rewards: Path | None, wanted: Collection[str]) -> Iterator[Form]:
    """Forms of a table of rewards for the queries that are wanted and that it holds; none without a table.

    Raises:
        DataError: no such table.
        MissingRowError: a table of other answers.
    """
    if rewards is None:
        return
    table = SideCar.load(rewards, [REWARD])
    name, held = _name(table.fingerprint), table.keys()
    for row, key in enumerate(map(str, index.column("key"))):
        if key in wanted and key in held:
            hashes = [response.hash for response in index.read(row, media=False).responses]
            scores = table.lookup(key, hashes)[REWARD].numpy()
            _, place = np.unique(-scores, return_inverse=True)
            yield Form(
                key=key, annotator=name, hashes=tuple(hashes), ranks=tuple(int(each) + 1 for each in place),
                kind="model", tool="rewards", origin=str(rewards),
            )  # fmt: skip


def _name(fingerprint: Mapping[str, Any]) -> str:
    """What made a table, in a word or two."""
    for name in ("reward_model", "model", "made_by"):
        if isinstance(fingerprint.get(name), str):
            return str(fingerprint[name])
    return "reward model"
