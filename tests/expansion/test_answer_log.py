"""Logs of answers, and recorded ones: what anyone wrote into them is an answer or an error that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import DataError
from mmrlhf.expansion.answer_log import AnswerLog
from mmrlhf.expansion.expanders import RecordedExpander

BAD = [
    b"not json", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"digest": [], "text": "t", "problem": ""}',
    b'{"digest": "d", "text": null, "problem": ""}', b'{"digest": "d", "problem": ""}',
    b'{"digest": "d", "text": "half \\ud800", "problem": ""}', b'{"digest": "d", "text": ' + b"9" * 5000 + b"}",
]  # fmt: skip


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "log", {"by": "me"})
    said = {"a": Answer("one \u2028 line", ""), "b": Answer("", "HTTP 400: no")}
    for digest, answer in said.items():
        log.add(digest, answer)
    log.close()
    again = AnswerLog(tmp_path / "log", {"by": "me"})
    again.close()
    assert again.answers == said


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:40].decode(errors="replace"))
def test_a_line_that_holds_no_answer_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(json.dumps({"made_by": {}}).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"log:2"):
        AnswerLog(path, {})
    with pytest.raises(DataError, match=r"log:[12]"):
        RecordedExpander(path)
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"log:1"):
        RecordedExpander(path)


@pytest.mark.parametrize("field", [b"3", b"null", b'["a"]'])
def test_a_problem_that_is_no_text(tmp_path: Path, field: bytes) -> None:
    (tmp_path / "log").write_bytes(b'{"made_by": {}}\n{"digest": "d", "text": "t", "problem": ' + field + b"}\n")
    with pytest.raises(DataError, match=r"log:2:problem"):
        AnswerLog(tmp_path / "log", {})
