"""Recorded answers: what anyone wrote into them is an answer or an error that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import DataError
from mmrlhf.expansion.expanders import RecordedExpander
from mmrlhf.expansion.request import Request

BAD = [
    b"not json", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"digest": [], "text": "t", "problem": ""}',
    b'{"digest": "d", "text": null, "problem": ""}', b'{"digest": "d", "problem": ""}',
    b'{"digest": "d", "text": "half \\ud800", "problem": ""}', b'{"digest": "d", "text": ' + b"9" * 5000 + b"}",
    *(b'{"digest": "d", "text": "t", "problem": ' + problem + b"}" for problem in (b"3", b"null", b'["a"]')),
]  # fmt: skip


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:60].decode(errors="replace"))
def test_a_line_that_holds_no_answer_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(json.dumps({"made_by": {}}).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"log:2"):
        RecordedExpander(path)
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"log:1"):
        RecordedExpander(path)


def test_answers_of_an_artefact_of_version_2_are_read(tmp_path: Path) -> None:
    """They begin with who made them, and those that were refused say why."""
    requests = [Request(key, "h", f"expand {key}", "reason", ("reason",)) for key in ("a", "b")]
    said = [Answer("one \u2028 line"), Answer("", "HTTP 400: no")]
    lines = [{"digest": r.digest, "text": a.text, "problem": a.problem} for r, a in zip(requests, said, strict=True)]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [{"made_by": {"expander": "endpoint: big"}}, *lines]))
    assert [answer for _, answer in RecordedExpander(path).expand(requests)] == said
