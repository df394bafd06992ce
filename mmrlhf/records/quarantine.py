"""Queries that cannot be used: left out one by one, counted by reason, and the end of a run where they are many.

Every pass and every training stage keeps one: a query that does not fit, that cannot be read, or that the model's
processor refuses costs the run that query and not its life.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.ranges import whole
from mmrlhf.summaries.left_out import LeftOutFor, Quarantined

log = logging.getLogger(__name__)

MAX_DAMAGED = 0.001
_SHOWN = 8


class Quarantine:
    """The queries that are left out, each with why, and how many may be.

    What earlier passes left out counts with what this one does, so the budget is one of the whole run.

    Args:
        num_queries: that the run reads.
        max_damaged: share of them that may be left out; one may be in any case.
        before: what the passes left out whose tables are read, key -> reason.

    Raises:
        ConfigError: a share outside of [0, 1].
    """

    def __init__(
        self, num_queries: int, max_damaged: float = MAX_DAMAGED, before: Mapping[str, str] | None = None
    ) -> None:
        if not 0 <= max_damaged <= 1:
            raise ConfigError(
                "not a share of queries", where="runtime.max_damaged", given=max_damaged, expected="0 to 1"
            )
        self.num_queries = num_queries
        self.budget = max(1, whole(max_damaged * num_queries))
        self.reasons: dict[str, str] = dict(before or {})
        self._before = frozenset(self.reasons)

    def __len__(self) -> int:
        return len(self.reasons)

    def __contains__(self, key: object) -> bool:
        return key in self.reasons

    def add(self, key: str, error: DataError) -> None:
        """Leave a query out, with a line in the log."""
        if key not in self.reasons:
            log.warning("query %s is left out: %s", key, error)
            self.reasons[key] = reason_of(error)

    def update(self, reasons: Mapping[str, str]) -> None:
        """Take over what others have left out."""
        self.reasons.update({key: reason for key, reason in reasons.items() if key not in self.reasons})

    def take_over(self, reasons: Mapping[str, str], keys: Container[str], where: str) -> None:
        """Take over what a table or an earlier run has left out of these keys; raises as `check`."""
        self.update({key: reason for key, reason in reasons.items() if key in keys})
        self.check(where)

    def own(self) -> dict[str, str]:
        """What was left out here and not before, key -> reason."""
        return {key: reason for key, reason in self.reasons.items() if key not in self._before}

    def check(self, where: str) -> None:
        """End the run where more is left out than the budget.

        Raises:
            DataError: counts the queries by reason, with the first keys.
        """
        if len(self.reasons) <= self.budget:
            return
        found = "; ".join(f"{row.queries} x {row.reason} ({', '.join(row.keys)})" for row in self.by_reason())
        raise DataError(
            "too many queries cannot be used",
            where=where,
            given=f"{len(self.reasons)} of {self.num_queries} queries: {found}",
            expected=f"at most {self.budget} (runtime.max_damaged)",
            fix="mend what the reasons name (`stage=verify` checks shards against their manifest), or allow more: "
            "runtime.max_damaged=SHARE",
        )

    def by_reason(self) -> list[LeftOutFor]:
        """For each reason how many queries it left out, and the first keys; the most frequent first."""
        keys: dict[str, list[str]] = {}
        for key, reason in sorted(self.reasons.items()):
            keys.setdefault(reason, []).append(key)
        rows = [LeftOutFor(why, len(own), own[:_SHOWN]) for why, own in keys.items()]
        return sorted(rows, key=lambda row: -row.queries)

    def summary(self) -> Quarantined:
        """What a stage's summary says: how many queries of how many, how many may be, and why."""
        return Quarantined(len(self.reasons), self.num_queries, self.budget, self.by_reason())


def reason_of(error: DataError) -> str:
    """The kind of a refusal, without what is true for this query only."""
    return error.problem
