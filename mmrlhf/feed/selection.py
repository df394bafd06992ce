"""Which queries of a data set are used: filters on what the index knows, with a count of everything left out.

A filter looks at the query alone, so it cuts both sides of the split alike, and never moves a query to the other side.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.shards.index import Index, Modality, Split

Range = Sequence[float | None]
_OPEN: Range = (None, None)
_RANGES = {
    "responses": "num_responses",
    "pairs": "num_pairs",
    "rank_range": "rank_range",
    "images": "num_images",
    "text_chars": "text_chars",
    "seconds": "duration",
}


@dataclass(frozen=True)
class Selection:
    """Filters; a query is used if it passes all of them.

    A range is (low, high), both included; None leaves an end open.

    Args:
        categories: only these; empty for all.
        without_categories: none of these.
        modalities: only these of text, image (one), images (several), video; empty for all.
        responses, pairs: number of responses, and of pairs of different rank.
        rank_range: worst rank minus best rank, 0 for queries without ranks.
        images: number of images.
        text_chars: characters of the prompt and all responses.
        seconds: length of the video, 0 where there is none.

    Raises:
        ConfigError: an unknown modality, or a range that is none.
    """

    categories: Sequence[str] = ()
    without_categories: Sequence[str] = ()
    modalities: Sequence[Modality] = ()
    responses: Range = _OPEN
    pairs: Range = _OPEN
    rank_range: Range = _OPEN
    images: Range = _OPEN
    text_chars: Range = _OPEN
    seconds: Range = _OPEN

    def __post_init__(self) -> None:
        unknown = sorted(set(self.modalities) - set(get_args(Modality)))
        if unknown:
            expected = ", ".join(get_args(Modality))
            raise ConfigError("unknown modality", where="data.selection.modalities", given=unknown, expected=expected)
        for name in _RANGES:
            given = getattr(self, name)
            ends = [end for end in given if end is not None]
            if len(given) != 2 or ends != sorted(ends):
                raise ConfigError(
                    "not a range", where=f"data.selection.{name}", given=given,
                    expected="[low, high], both included, null for an open end",
                )  # fmt: skip

    def tests(self, index: Index) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (filter's name, which rows of the index pass it (N,) bool) for every filter that is set."""
        if self.categories:
            yield "categories", np.isin(index.column("category"), _known(index, "categories", self.categories))
        if self.without_categories:
            unwanted = _known(index, "without_categories", self.without_categories)
            yield "without_categories", ~np.isin(index.column("category"), unwanted)
        if self.modalities:
            yield "modalities", np.isin(index.modality(), list(self.modalities))
        for name, column in _RANGES.items():
            low, high = getattr(self, name)
            if low is not None or high is not None:
                values = index.column(column)
                passes = values >= (-np.inf if low is None else low)
                yield name, passes & (values <= (np.inf if high is None else high))


@dataclass(frozen=True)
class Selected:
    """Rows of an index (n,) int64, ascending, and how many others were left out, by the first reason that applied."""

    rows: np.ndarray
    excluded: Mapping[str, int] = field(default_factory=dict)


def select(
    index: Index, side: Split, *, holdout: float, limit: int | None = None, selection: Selection | None = None
) -> Selected:
    """Choose one side of the split by key, then what the filters let through, then at most `limit` of that.

    `len(rows) + sum(excluded)` is the number of queries in the index.

    Raises:
        ConfigError: a category that no query has.
        DataError: the filters let nothing through of a side that has queries.
    """
    rows = index.split(side, holdout)
    excluded = {"other side of the split": len(index) - len(rows)}
    start = len(rows)
    for name, passes in (selection or Selection()).tests(index):
        kept = rows[passes[rows]]
        excluded[name] = len(rows) - len(kept)
        rows = kept
    if start and not len(rows):
        raise DataError(
            "the filters leave no query",
            where="data.selection",
            given=", ".join(f"{name}: {count} left out" for name, count in excluded.items()),
            expected=f"at least one of the {start} queries of the side `{side}`",
            fix="widen the filters" + (", or raise data.holdout" if side == "heldout" else ""),
        )
    taken = index.take(rows, limit)
    excluded["limit"] = len(rows) - len(taken)
    return Selected(taken, {name: count for name, count in excluded.items() if count})


@dataclass(frozen=True)
class Queries:
    """Which queries of a data set a stage works on: the two sides of the split, filtered and limited alike everywhere.

    Args:
        holdout: share of the keys that are never trained on.
        selection: filters of both sides; None: all queries.
        limit, val_limit: at most so many to train on, and held out.
    """

    holdout: float
    selection: Selection | None = None
    limit: int | None = None
    val_limit: int | None = None

    def train(self, index: Index) -> Selected:
        """Those to train on (raises as `select`)."""
        return select(index, "train", holdout=self.holdout, limit=self.limit, selection=self.selection)

    def heldout(self, index: Index) -> Selected:
        """Those held out (raises as `select`)."""
        return select(index, "heldout", holdout=self.holdout, limit=self.val_limit, selection=self.selection)

    def rows(self, index: Index) -> np.ndarray:
        """Rows (n,) of both sides, those held out first."""
        return np.concatenate([self.heldout(index).rows, self.train(index).rows])


def usable(index: Index, rows: np.ndarray, left_out: Container[str]) -> np.ndarray:
    """The rows whose queries are not among those left out, in their order."""
    return rows[[index.entries[int(row)].key not in left_out for row in rows]] if len(rows) else rows


def _known(index: Index, name: str, wanted: Sequence[str]) -> list[str]:
    known = sorted(set(index.column("category").tolist()))
    unknown = [category for category in wanted if category not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            "no query has this category",
            where=f"data.selection.{name}",
            given=unknown,
            expected="some of " + ", ".join(known),
            fix=f"did you mean {near[0]}?" if near else None,
        )
    return list(wanted)
