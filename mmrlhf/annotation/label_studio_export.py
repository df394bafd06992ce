"""Forms out of Label Studio's JSON export: all annotators' annotations, and the proposals of models.

Follows: the export of Label Studio 1.23 (`exportType=JSON`, not JSON_MIN). Nothing is taken on trust: tasks of another
project, edited tasks, cancelled and empty annotations, unknown answers and proposals without a model are refused one by
one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mmrlhf.annotation.filled_forms import DIMENSIONS, EMPTY, LEVELS, Form, Kind, Refuse, readable
from mmrlhf.annotation.label_studio_project import PROBLEM, PROBLEM_TEXT, RANKING
from mmrlhf.errors import DataError
from mmrlhf.records.fields import is_number
from mmrlhf.reporting.sample_cards import response_letter
from mmrlhf.types import response_hash

FOREIGN = "a task of another project"
EDITED = "the task was edited: its texts are not those that were exported"
CANCELLED = "skipped by the annotator"
NAMELESS = "a proposal without its model (model_version)"
DAMAGED = "not a result of this page"
_BUCKET = re.compile(r"rank_(\d+)")
_FIELD = re.compile(rf"({'|'.join(DIMENSIONS)})(_reason)?_(\d+)")


def label_studio_forms(tasks: object, where: str, refuse: Refuse) -> Iterator[Form]:
    """Read the tasks of an export.

    Args:
        tasks: its JSON.
        refuse: is told (place, reason) of each task, annotation and prediction that cannot be used.

    Raises:
        DataError: no such export, or not one of its tasks is of a project of `stage=annotate`.
    """
    if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
        raise DataError("not Label Studio's JSON export", where=where, expected="a list of tasks (Export > JSON)")
    ours = [_is_ours(task.get("data")) for task in tasks]
    if not any(ours):
        without = "annotations" not in (tasks[0] if tasks else {})
        raise DataError(
            "an export of another project", where=where, given=f"{len(tasks)} tasks without key, hashes and order",
            expected="the export of a project that stage=annotate tool=label_studio wrote",
            fix="Export > JSON (JSON-MIN leaves out what is needed)" if without else None,
        )  # fmt: skip
    for number, task in enumerate(tasks):
        place = f"{where}: task {task.get('id', number)}"
        if not ours[number]:
            refuse(place, FOREIGN)
        elif _is_edited(task["data"]):
            refuse(place, EDITED)
        else:
            yield from _task_forms(task, place, refuse)


def _is_ours(data: Any) -> bool:
    if not isinstance(data, Mapping) or not isinstance(data.get("key"), str):
        return False
    hashes, order = data.get("hashes"), data.get("order")
    if not isinstance(hashes, list) or not isinstance(order, list):
        return False
    texts = all(isinstance(each, str) for each in hashes)
    return texts and sorted(map(str, order)) == sorted(map(str, range(len(hashes))))


def _is_edited(data: Mapping[str, Any]) -> bool:
    shown = [data.get(f"response_{number}") for number in range(len(data["order"]))]
    expected = [data["hashes"][int(place)] for place in data["order"]]
    texts = [data.get("prompt"), *shown]
    if not all(isinstance(text, str) for text in texts):
        return True
    return [response_hash(str(text)) for text in texts] != [data.get("prompt_hash"), *expected]


def _task_forms(task: Mapping[str, Any], place: str, refuse: Refuse) -> Iterator[Form]:
    for each in _objects(task.get("annotations")):
        origin = f"{place}, annotation {each.get('id')}"
        if each.get("was_cancelled"):
            refuse(origin, CANCELLED)
            continue
        kind: Kind = "expert" if each.get("ground_truth") else "person"
        form = _form(task["data"], each, origin, kind, _annotator(each.get("completed_by")), refuse)
        if form is not None:
            yield form
    for each in _proposals(task):
        origin, name = f"{place}, prediction {each.get('id')}", each.get("model_version")
        if not isinstance(name, str) or not name.strip() or name == "undefined":
            refuse(origin, NAMELESS)
            continue
        form = _form(task["data"], each, origin, "model", name, refuse)
        if form is not None:
            yield form


def _proposals(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Predictions of a task, each once: an export has numbers, and the one that was shown beside each annotation."""
    shown = [each.get("prediction") for each in _objects(task.get("annotations"))]
    found: dict[str, Mapping[str, Any]] = {}
    for place, each in enumerate((*_objects(task.get("predictions")), *_objects(shown))):
        if each:
            number = each.get("id")
            found.setdefault(f"place {place}" if number is None else f"id {number}", each)
    return list(found.values())


def _form(
    data: Mapping[str, Any], each: Mapping[str, Any], origin: str, kind: Kind, annotator: str, refuse: Refuse
) -> Form | None:
    """An annotation or prediction as a form; None, refused, where it is empty or a result is none of the page's."""
    reader = _Results([int(place) for place in data["order"]])
    try:
        for result in _objects(each.get("result")):
            reader.add(result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        refuse(origin, f"{DAMAGED} ({type(error).__name__}: {error})")
        return None
    seen = each.get("prediction")
    if isinstance(seen, Mapping) and seen:
        origin += f", with the proposal of {seen.get('model_version') or 'an unknown model'} before it"
    seconds = each.get("lead_time")
    form = Form(
        key=data["key"], annotator=annotator, hashes=tuple(data["hashes"]), kind=kind, tool="label_studio",
        origin=origin, ranks=tuple(reader.ranks), problem=reader.problem,
        scores={name: tuple(row) for name, row in reader.scores.items()},
        reasons={name: tuple(row) for name, row in reader.reasons.items()},
        at=_time(each.get("updated_at") or each.get("created_at")),
        seconds=float(seconds) if is_number(seconds) else None,
    )  # fmt: skip
    if form.is_empty:
        refuse(origin, EMPTY)
        return None
    return form


class _Results:
    """Collects the results of one annotation, in the order of the responses.

    Args:
        order: the place of each shown answer.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self._order, size = order, len(order)
        self.ranks: list[int | None] = [None] * size
        self.scores: dict[str, list[float | None]] = {name: [None] * size for name in DIMENSIONS}
        self.reasons = {name: [""] * size for name in DIMENSIONS}
        self.problem = ""

    def add(self, result: Mapping[str, Any]) -> None:
        """Add one result; raises KeyError, TypeError, ValueError or IndexError for what the page cannot give."""
        name, value = result["from_name"], result["value"]
        field = _FIELD.fullmatch(name)
        if field and field[2]:
            self.reasons[field[1]][self._order[int(field[3])]] = _one_text(value["text"])
        elif field:
            self.scores[field[1]][self._order[int(field[3])]] = _score(value["rating"])
        elif name == RANKING:
            self._rank(value["ranker"])
        elif name == PROBLEM:
            self.problem = self.problem or (PROBLEM if value["choices"] else "")
        elif name == PROBLEM_TEXT:
            self.problem = _one_text(value["text"])
        else:
            raise ValueError(f"unknown field {name!r}"[:80])

    def _rank(self, ranker: Any) -> None:
        """Buckets by name; without buckets a list of letters, the best first, bare or under one name."""
        if isinstance(ranker, Mapping) and not any(_BUCKET.fullmatch(name) for name in ranker):
            full = [letters for name, letters in ranker.items() if letters and name != "_"]
            if len(full) > 1:
                raise ValueError(f"unknown buckets {', '.join(map(str, ranker))}"[:80])
            ranker = full[0] if full else []
        if not isinstance(ranker, Mapping):
            ranker = {f"rank_{number}": [letter] for number, letter in enumerate(ranker, start=1)}
        letters = [response_letter(number) for number in range(len(self._order))]
        for name, items in ranker.items():
            bucket = _BUCKET.fullmatch(name)
            for letter in items:
                place = self._order[letters.index(letter)]
                if bucket:
                    self.ranks[place] = int(bucket[1])


def _score(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LEVELS or value % 1:
        raise ValueError(f"a rating of {value!r}"[:80])
    return int(value) or None  # stars that were taken back are 0


def _one_text(value: Any) -> str:
    """Texts of one field, each once: an update of an annotation may repeat them."""
    texts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text that is none")
    return "\n".join(dict.fromkeys(readable(text.strip()) for text in texts if text.strip()))


def _annotator(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("email") or value.get("username") or f"user {value.get('id')}")
    return f"user {value}"


def _time(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
