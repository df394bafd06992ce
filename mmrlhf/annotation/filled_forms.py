"""A filled form: what one annotator said about one query's answers, whichever tool it was filled in with.

The exchange format is JSON lines of forms. Everything about answers is in the order of the query's responses, not in
the order in which they were shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mmrlhf.errors import DataError
from mmrlhf.files import write_bytes
from mmrlhf.records.fields import is_number
from mmrlhf.types import PreferenceGroup

# Follows: MM-RLHF (arXiv 2502.10391), section 2: three dimensions with a score and a reason each, and a ranking.
DIMENSIONS = ("helpfulness", "faithfulness", "ethics")
LEVELS = 5
Kind = Literal["person", "expert", "simulated", "model"]
Refuse = Callable[[str, str], None]  # (where, reason): counted and listed, nothing is dropped in silence

UNANNOTATED_QUERY = "the query is not among these"
OTHER_ANSWERS = "filled in for other answers of this query"
EMPTY = "an empty form"


@dataclass(frozen=True)
class Form:
    """What one annotator said about one query with K answers.

    hashes (K,): of the responses it was filled in for; ranks (K,): 1 is best, ties share a rank, None was not ranked;
    scores, reasons: dimension -> (K,), None or "" where nothing was said; problem: what is wrong with the query, if
    anything; origin: the form's place in its tool; at: Unix time of the last change; seconds: that it took.
    """

    key: str
    annotator: str
    hashes: tuple[str, ...]
    ranks: tuple[int | None, ...]
    scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""
    kind: Kind = "person"
    tool: str = ""
    origin: str = ""
    at: float | None = None
    seconds: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        said = (*self.ranks, *(score for scores in self.scores.values() for score in scores))
        return all(value is None for value in said) and not self.problem and not any(map(any, self.reasons.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain values under the fields' names."""
        return json.loads(json.dumps(asdict(self)))


def misfit(form: Form, group: PreferenceGroup | None) -> str:
    """Why a form cannot be used for a query (None: no such query); "" where it can."""
    if group is None:
        return UNANNOTATED_QUERY
    if list(form.hashes) != [response.hash for response in group.responses]:
        return OTHER_ANSWERS
    return EMPTY if form.is_empty else ""


def closed_ranks(ranks: Sequence[int | None]) -> tuple[int | None, ...]:
    """Ranks without gaps: 1, 3, 3 becomes 1, 2, 2; None stays."""
    known = sorted({rank for rank in ranks if rank is not None})
    return tuple(None if rank is None else known.index(rank) + 1 for rank in ranks)


def form_of(row: Any, *, where: str) -> Form:
    """Read a form from its JSON.

    Raises:
        DataError: not what `Form.to_json` gives: names the field.
    """
    if not isinstance(row, Mapping):
        raise _wrong(where, row, "an object")
    unknown = sorted(set(row) - set(Form.__dataclass_fields__))
    if unknown:
        raise _wrong(where, f"field {unknown[0]}", f"the fields {', '.join(Form.__dataclass_fields__)}")
    hashes = _column(row, "hashes", lambda value: isinstance(value, str), where)
    size = len(hashes)
    form = Form(
        key=_text(row, "key", where), annotator=_text(row, "annotator", where), hashes=hashes,
        ranks=_column(row, "ranks", _is_rank, where, size),
        scores=_columns(row, "scores", _is_score, where, size),
        reasons={
            name: tuple(map(readable, texts))
            for name, texts in _columns(row, "reasons", lambda value: isinstance(value, str), where, size).items()
        },
        **{name: _text(row, name, where) for name in ("problem", "tool", "origin") if name in row},
        kind=row.get("kind", "person"), at=_number(row, "at", where), seconds=_number(row, "seconds", where),
    )  # fmt: skip
    if form.kind not in get_args(Kind):
        raise _wrong(f"{where}:kind", form.kind, ", ".join(get_args(Kind)))
    if not form.key or not form.annotator:
        raise _wrong(f"{where}:annotator", "a form without a query or an annotator", "who said what about which query")
    if form.kind != "model":
        _check_levels(form, where)
    return form


def write_forms(path: Path, forms: Iterable[Form]) -> None:
    """Write forms as JSON lines."""
    lines = (json.dumps(form.to_json(), ensure_ascii=False) + "\n" for form in forms)
    write_bytes(path, "".join(lines).encode("utf-8", errors="backslashreplace"))


def _check_levels(form: Form, where: str) -> None:
    for name, scores in form.scores.items():
        wrong = [score for score in scores if score is not None and not 1 <= score <= LEVELS]
        if wrong:
            raise _wrong(f"{where}:scores.{name}", wrong[0], f"scores from 1 to {LEVELS}")


def _is_rank(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_score(value: Any) -> bool:
    return value is None or is_number(value)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(row.get(name), str):
        raise _wrong(f"{where}:{name}", row.get(name), "text")
    return readable(row[name])


def readable(text: str) -> str:
    """A text that can be written down: halves of characters, which JSON may hold, become question marks."""
    return text.encode("utf-8", errors="replace").decode()


def _number(row: Mapping[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if not _is_score(value):
        raise _wrong(f"{where}:{name}", value, "a number, or null")
    return value


def _column(
    row: Mapping[str, Any], name: str, fits: Callable[[Any], bool], where: str, size: int | None = None
) -> tuple[Any, ...]:
    values = row.get(name)
    if not isinstance(values, list) or not all(map(fits, values)) or (size is not None and len(values) != size):
        raise _wrong(f"{where}:{name}", values, "one value for each answer" + (f", {size} in all" if size else ""))
    return tuple(values)


def _columns(
    row: Mapping[str, Any], name: str, fits: Callable[[Any], bool], where: str, size: int
) -> dict[str, tuple[Any, ...]]:
    table = row.get(name, {})
    if not isinstance(table, Mapping) or set(table) - set(DIMENSIONS):
        raise _wrong(f"{where}:{name}", table, f"lists by dimension: {', '.join(DIMENSIONS)}")
    return {dimension: _column(table, dimension, fits, f"{where}:{name}", size) for dimension in table}


def _wrong(where: str, given: object, expected: str) -> DataError:
    return DataError("not a filled form", where=where, given=repr(given)[:200], expected=expected)
