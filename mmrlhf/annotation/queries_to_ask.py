"""The queries that can be put before people, and gold ones among them: found by key, read one at a time."""

from __future__ import annotations

from mmrlhf.errors import DataError
from mmrlhf.shards.index import Index
from mmrlhf.types import PreferenceGroup

TOO_FEW = "fewer than two answers, so there is nothing to compare"


class QueriesToAsk:
    """Queries with at least two answers.

    Attributes:
        keys, gold: of the queries and of those whose ranking is known.
        refused: key -> why a query cannot be asked about.

    Raises:
        DataError: there is none.
    """

    def __init__(self, index: Index, gold: Index | None = None) -> None:
        self.index, self._gold = index, gold
        self.refused: dict[str, str] = {}
        self._rows = _rows(index)
        self._gold_rows = _rows(gold) if gold else {}
        counts = dict(zip(map(str, index.column("key")), index.column("num_responses").tolist(), strict=True))
        for key, count in counts.items():
            if count < 2:
                self.refuse(key, TOO_FEW)
        self.keys, self.gold = [key for key, count in counts.items() if count > 1], list(self._gold_rows)
        if not self.keys:
            raise DataError(
                "no query has answers to compare", where=index.folder, given=f"{len(index)} queries",
                expected="two answers of a query or more", fix="stage=respond writes answers of models",
            )  # fmt: skip

    def read(self, key: str, *, media: bool = True) -> PreferenceGroup:
        """Read a query, gold or not; raises DataError for a damaged one."""
        if key in self._rows:
            return self.index.read(self._rows[key], media=media)
        assert self._gold is not None
        return self._gold.read(self._gold_rows[key], media=media)

    def refuse(self, key: str, reason: str) -> None:
        """Note that a query cannot be asked about."""
        self.refused[key] = reason


def _rows(index: Index) -> dict[str, int]:
    return {str(key): row for row, key in enumerate(index.column("key"))}
