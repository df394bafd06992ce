"""What a model cannot use, found before it starts: one pass over the index, with its own processor, on texts and sizes.

No medium is decoded. Pictures are asked about by size, each combination once; texts are tokenized where they might not
fit, however many tokens they have. What is found is what encoding would raise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from mmrlhf.errors import ConfigError, DataError, Lines, MissingRowError
from mmrlhf.records.quarantine import Quarantine, reason_of
from mmrlhf.shards.entries import IndexEntry
from mmrlhf.shards.index import Index
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.length import RESPONSE_TOO_LONG, TOO_LONG
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

Prepare = Callable[[PreferenceGroup], PreferenceGroup]
Mode = Literal["quarantine", "error"]
# Of more queries that might not fit, those are tokenized whose estimate comes near the limit.
MANY = 10_000
_NEAR = 2.0
_SHOWN = 5
_TOO_LONG = (TOO_LONG, RESPONSE_TOO_LONG)


@dataclass(frozen=True)
class Refusal:
    """Why a query cannot be used: the kind of reason, and what is true of this query."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        queries: that were looked at.
        left_out: key -> why a query cannot be used.
        cut: key -> tokens that its responses lose.
    """

    queries: int = 0
    left_out: Mapping[str, Refusal] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)

    @property
    def too_long(self) -> list[str]:
        """Keys of queries that do not fit."""
        return [key for key, why in self.left_out.items() if why.reason in _TOO_LONG]

    @property
    def refused(self) -> list[str]:
        """Keys of those that cannot be used for any other reason, as the processor's refusal."""
        return [key for key, why in self.left_out.items() if why.reason not in _TOO_LONG]

    def lines(self) -> Lines:
        """Counts, first keys and reasons, a line for each kind that there is."""
        kinds = {"will not fit": self.too_long, "will be refused": self.refused, "will be cut": list(self.cut)}
        return Lines(
            f"{len(keys)} of {self.queries} queries {what}: {', '.join(keys[:_SHOWN])}"
            + (", ..." if len(keys) > _SHOWN else "")
            + f" ({keys[0]}: {self._why(keys[0])})"
            for what, keys in kinds.items()
            if keys
        )

    def _why(self, key: str) -> str:
        found = self.left_out.get(key)
        return found.detail if found is not None else f"{self.cut[key]} tokens off its responses"

    def settle(self, quarantine: Quarantine, mode: str) -> None:
        """Leave out what cannot be used, or end the run there; what will be cut is told in any case.

        Raises:
            ConfigError: an unknown mode.
            DataError: `error` and something cannot be used; or more is left out than the quarantine's budget.
        """
        check_mode(mode)
        for line in self.lines():
            log.warning("before the start: %s", line)
        if self.left_out and mode == "error":
            raise DataError(
                "some queries cannot be used with this model",
                where="what a stage is about to read",
                given=self.lines(),
                expected="queries that fit, of media that this family reads (runtime.preflight=error)",
                fix="raise model.settings.max_tokens, drop these records, or leave them out: "
                "runtime.preflight=quarantine",
            )
        quarantine.update({key: why.reason for key, why in self.left_out.items()})
        quarantine.check("what a stage is about to read")

    def summary(self) -> dict[str, Any]:
        """Counts and first keys, with what is true of each, as JSON."""
        kinds = {"too_long": self.too_long, "refused": self.refused, "cut": list(self.cut)}
        found = {
            name: {"queries": len(keys), "first": {k: self._why(k) for k in keys[:_SHOWN]}}
            for name, keys in kinds.items()
        }
        return {"queries": self.queries, **found}


def check_mode(mode: str) -> None:
    """Raise ConfigError for a mode that there is not."""
    if mode not in get_args(Mode):
        raise ConfigError(
            "unknown way to treat what cannot be used",
            where="runtime.preflight",
            given=mode,
            expected=f"one of {', '.join(get_args(Mode))}",
        )


def look_ahead(
    index: Index,
    rows: Sequence[int] | np.ndarray,
    encoder: Encoder,
    *,
    prepare: Prepare | None = None,
    with_answer: bool = True,
) -> Preflight:
    """Find out which rows the encoder will refuse or shorten.

    Args:
        encoder: with what text costs learned (`Encoder.calibrate`), where there are many rows.
        prepare: changes a query before it is encoded.
        with_answer: rows are encoded whole, or as contexts to write behind.

    Raises:
        MissingRowError: `prepare` lacks something for a query.
    """
    numbers = [int(row) for row in rows]
    forms = _refused_forms(index, numbers, encoder, prepare, with_answer)
    doubtful = [row for row in numbers if prepare is not None or not encoder.surely_fits(index.entries[row])]
    if len(doubtful) > MANY or index.remote is not None:  # what is not here yet is fetched where it has to be
        doubtful = [row for row in doubtful if _is_near(encoder, index.entries[row])]
    refused = {row for row in numbers if index.entries[row].form in forms} if forms else set[int]()
    left_out: dict[str, Refusal] = {}
    cut: dict[str, int] = {}
    for row in sorted({*doubtful, *refused}):
        entry = index.entries[row]
        try:
            group = index.read(row, media=False)
            lost = encoder.foresee(group if prepare is None else prepare(group), entry, with_answer=with_answer)
        except MissingRowError:
            raise
        except DataError as error:
            left_out[entry.key] = Refusal(reason_of(error), str(error.given))
        else:
            cut |= {entry.key: sum(lost)} if any(lost) else {}
    return Preflight(len(numbers), left_out, cut)


def _is_near(encoder: Encoder, entry: IndexEntry) -> bool:
    visual = encoder.visual.estimate(entry)
    refused = not visual and (entry.num_images or entry.num_frames)
    return bool(refused) or _NEAR * encoder.estimate_tokens(entry) + encoder.room > encoder.max_tokens


def _refused_forms(
    index: Index, rows: Sequence[int], encoder: Encoder, prepare: Prepare | None, with_answer: bool
) -> set[str]:
    """Forms of conversations (`IndexEntry.form`) of which the first query is refused: their queries are looked at."""
    first: dict[str, int] = {}
    for row in rows:
        form = index.entries[row].form
        if form:
            first.setdefault(form, row)
    found = set()
    for form, row in first.items():
        try:
            group = index.read(row, media=False)
            encoder.foresee(group if prepare is None else prepare(group), index.entries[row], with_answer=with_answer)
        except MissingRowError:
            raise
        except DataError:
            found.add(form)
    return found
