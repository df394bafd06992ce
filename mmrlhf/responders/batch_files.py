"""OpenAI's batch files: requests written under the limits of the services, results read in any order and form.

A line asks `{"custom_id", "method", "url", "body"}`; a result's line has `response.body` (OpenAI and others), or the
completion itself under `response` (vLLM). Failures stand in a file of their own, or beside the results.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.endpoints.client import RETRIED
from mmrlhf.endpoints.completions import FILTERED, MODERATED, Answer, Use, read_completion
from mmrlhf.errors import DataError
from mmrlhf.files import publish_file
from mmrlhf.text import one_line

PATH = "/v1/chat/completions"
_SEPARATOR = "~"
_DETAIL = 200


def custom_id(key: str, name: str, sample: int) -> str:
    """What a request is called: keys and names hold no `~`."""
    return _SEPARATOR.join((key, name, str(sample)))


def write_requests(
    folder: Path, name: str, requests: Iterable[tuple[str, Mapping[str, Any]]], *, max_requests: int, max_bytes: int
) -> list[Path]:
    """Write named requests as files of at most so many requests and bytes each, in place of those that were there.

    Raises:
        DataError: one request alone is larger than a file may be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.jsonl"):
        old.unlink()
    written: list[Path] = []
    stream, count, size = None, 0, 0
    try:
        for called, body in requests:
            line = json.dumps({"custom_id": called, "method": "POST", "url": PATH, "body": body}) + "\n"
            if len(line) > max_bytes:
                raise DataError(
                    "a request is larger than a file of requests may be",
                    where=called, given=f"{len(line)} bytes", expected=f"at most {max_bytes}",
                    fix="make pictures smaller: longest_side=PIXELS",
                )  # fmt: skip
            if stream is None or count == max_requests or size + len(line) > max_bytes:
                if stream is not None:
                    stream.close()
                written.append(folder / f"{name}-{len(written):05d}.jsonl")
                stream, count, size = _part(written[-1]).open("w", encoding="ascii"), 0, 0
            stream.write(line)
            count, size = count + 1, size + len(line)
    finally:
        if stream is not None:
            stream.close()
    for path in written:
        publish_file(_part(path), path)
    return written


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@dataclass
class BatchResults:
    """What files of results hold: an answer for each request by its name; and lines that are of no use, by reason."""

    answers: dict[str, Answer] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    first_unused: dict[str, str] = field(default_factory=dict)

    def skip(self, why: str, where: str) -> None:
        """Count a line that is of no use."""
        self.unused[why] += 1
        self.first_unused.setdefault(why, where)


def read_results(files: Iterable[Path]) -> BatchResults:
    """Read files of results, and of failures, in any order.

    Of several lines for one request an answer wins over a refusal, a refusal over a failure that may pass, and the
    first of a kind over later ones.

    Raises:
        DataError: a file that cannot be read.
    """
    found = BatchResults()
    for path in files:
        for where, line in _lines(path):
            try:
                row = json.loads(line)
                called, answer = str(row["custom_id"]), _answer(row)
            except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
                found.skip(f"no line of results ({type(error).__name__})", where)
                continue
            before = found.answers.get(called)
            if before is not None and _standing(before) >= _standing(answer):
                found.skip("another line for a request that has one", where)
                continue
            if before is not None:
                found.skip("a failure of a request that was answered elsewhere", where)
            found.answers[called] = answer
    return found


def _standing(answer: Answer) -> tuple[bool, bool]:
    """What a line for a request is worth beside others: a model's own word, or at least one that is final."""
    return answer.kept, not answer.failed


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise DataError("a file of results cannot be read", where=path, given=error.strerror or str(error)) from error


def _answer(row: Mapping[str, Any]) -> Answer:
    error, response = row.get("error"), row.get("response")
    if error and not response:
        return _failure(error, None)
    content = response if isinstance(response, Mapping) else row
    body = content.get("body", content)
    code = content.get("status_code")
    if isinstance(body, str):  # some services leave it as text
        body = json.loads(body)
    if code not in (None, 200) or "choices" not in body:
        return _failure(error or body.get("error", body), code)
    return read_completion(body)


def _failure(error: Any, code: Any) -> Answer:
    """An answer that is none: final where the service refused what was asked."""
    said = one_line(json.dumps(error), _DETAIL)
    if any(word.decode() in said for word in MODERATED):
        return Answer("", f"{FILTERED}: {said}", use=Use(finish="content_filter"))
    name = error.get("code") if isinstance(error, Mapping) else None
    what = f"HTTP {code}" if isinstance(code, int) else f"batch error {one_line(name or '', 40)}".strip()
    refused = isinstance(code, int) and 400 <= code < 500 and code not in RETRIED
    return Answer("", f"{what}: {said}", failed=not refused)
