"""One document's score, as a row of a file: what every table, comparison and page is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mmrlhf.errors import DataError
from mmrlhf.files import read_lines, written

SCORES = "scores.jsonl"
_KINDS = {
    "str": (str,),
    "float | None": (int, float, type(None)),
    "bool | None": (bool, type(None)),
    "bool": (bool,),
    "int": (int,),
}


@dataclass(frozen=True)
class Result:
    """A document of a benchmark and what became of its answer.

    Args:
        task, document: name of the benchmark, and of the document in it.
        dimension, title: where the table puts the benchmark, and what it calls it.
        digest: of pictures, prompt and right answer: results with the same one are of the same question.
        picture: of the pictures alone: documents of one picture are not independent.
        prompt, answer: what was asked and said.
        score: None where there is none, and then `reason` says why.
        strict: as the benchmark's own code scores it; None where that is no different question.
        parsed: whether the answer has the form that was asked for; None where any text has.
        words: of the answer.
        cut: the answer ended at the longest length allowed.
        verdict: a judge's, or what the score was read from.
        reason: why there is no score.
    """

    task: str
    document: str
    title: str
    dimension: str
    digest: str
    picture: str
    prompt: str
    answer: str
    score: float | None
    strict: float | None = None
    parsed: bool | None = None
    words: int = 0
    cut: bool = False
    verdict: str = ""
    reason: str = ""


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write `folder/scores.jsonl`."""
    with written(folder / SCORES) as part, part.open("w", encoding="utf-8") as file:
        for result in results:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")


def read_results(folder: Path) -> list[Result]:
    """Read `folder/scores.jsonl`, also of an earlier version that had fewer fields with defaults.

    Raises:
        DataError: there is no such file, a line is no result, or a document is there twice.
    """
    path = folder if folder.is_file() else folder / SCORES
    if not path.is_file():
        raise DataError(
            "there are no scores of benchmarks here",
            where=folder, expected=f"a folder with {SCORES}", fix="stage=suite_scores makes one of a model's answers",
        )  # fmt: skip
    found: dict[tuple[str, str], Result] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        result = _parse(line, f"{path}:{number}")
        if (result.task, result.document) in found:
            raise DataError(
                "a document is there twice", where=f"{path}:{number}", given=f"{result.task} {result.document}"
            )
        found[result.task, result.document] = result
    return list(found.values())


def _parse(line: str, where: str) -> Result:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("a line is no JSON", where=where, given=str(error)) from error
    known = {field.name: field for field in fields(Result)}
    if not isinstance(row, Mapping) or not set(row) <= set(known):
        raise DataError("a line is no result", where=where, given=line[:80], expected=f"fields {', '.join(known)}")
    wrong = [name for name, value in row.items() if type(value) not in _KINDS[str(known[name].type)]]
    try:
        result = Result(**row)
    except TypeError as error:
        raise DataError("a result lacks a field", where=where, given=str(error)) from error
    if wrong or (result.score is None) != bool(result.reason) or result.score != result.score:
        names = ", ".join(wrong) or "score and reason"
        raise DataError("a result's value cannot be this", where=where, given=f"{names} in {line[:80]}")
    return result
