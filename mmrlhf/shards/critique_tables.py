"""Which critique stands behind a response, where it is not the annotated one: dealt out at random, or from a table.

Follows: CLoud (arXiv 2408.11791): a score head learns better behind critiques that the model wrote itself than behind
the annotators'; they come as a table that the stage `score` wrote. Shuffled critiques are the control that tells what a
critique says from what it is: within a query each response gets a random one of the query's critiques, so a critique
tells nothing about which response it stands behind.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

CRITIQUE = "critique"
_SHOWN = 8


@dataclass(frozen=True)
class ShuffledCritiques:
    """Deal a query's critiques of one kind out at random among the responses that have one.

    The draw is a function of the seed and the query's key, so it is the same in every epoch and on every rank.
    """

    kind: str
    seed: int = 0

    def __call__(self, group: PreferenceGroup) -> PreferenceGroup:
        """The same query with its critiques in another order."""
        written = [i for i, response in enumerate(group.responses) if self.kind in response.critiques]
        name = hashlib.blake2b(f"{self.seed}:{group.key}".encode(), digest_size=8).digest()
        dealt = np.random.default_rng(int.from_bytes(name, "big")).permutation(len(written))
        texts = [group.responses[written[other]].critiques[self.kind] for other in dealt]
        return _with_texts(group, self.kind, zip(written, texts, strict=True))


@dataclass(frozen=True)
class TableCritiques:
    """Take a query's critiques from a table (column `critique`), as the kind that the template asks for."""

    table: SideCar
    kind: str

    def __call__(self, group: PreferenceGroup) -> PreferenceGroup:
        """The same query with the table's critiques; raises DataError for a response that the table lacks."""
        texts = self.table.texts(group.key, [response.hash for response in group.responses], CRITIQUE)
        return _with_texts(group, self.kind, enumerate(texts))


def _with_texts(group: PreferenceGroup, kind: str, texts: Iterable[tuple[int, str]]) -> PreferenceGroup:
    responses = list(group.responses)
    for place, text in texts:
        responses[place] = replace(responses[place], critiques={**responses[place].critiques, kind: text})
    return replace(group, responses=tuple(responses))


def check_critiques(index: Index, rows: Sequence[int] | np.ndarray, kind: str, *, only_count: bool = False) -> None:
    """Make sure that every response of these rows has a critique of a kind, before anything is trained on them.

    Args:
        only_count: log how many have none instead of raising; it is still an error if none has one.

    Raises:
        DataError: some have none; counts them and names their queries.
    """
    lacking: dict[str, int] = {}
    responses = 0
    for row in rows:
        try:
            group = index.read(int(row), media=False)
        except DataError:  # damage is counted when the row is trained on
            continue
        missing = sum(kind not in response.critiques for response in group.responses)
        responses += len(group.responses)
        if missing:
            lacking[group.key] = missing
    if not lacking:
        return
    total = sum(lacking.values())
    if only_count and total < responses:
        log.warning("%d of %d responses have no '%s' critique: only their score is learned", total, responses, kind)
        return
    shown = ", ".join(f"{key} ({count})" for key, count in list(lacking.items())[:_SHOWN])
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    raise DataError(
        f"{total} of {responses} responses have no '{kind}' critique",
        where=index.folder,
        given=f"{len(lacking)} of {len(rows)} queries lack some: {shown}{more}",
        expected=f"a '{kind}' critique of every response",
        fix="stages.reward.critique.missing=score learns scores from all responses and critiques from those that have "
        "one; or choose another kind (data.critique), expand the annotations first, or data.critique=none",
    )
