"""Files of lines: a line feed ends a line, and no other of the many line breaks that a text may hold does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.callbacks.curves import _open_from
from mmrlhf.errors import DataError
from mmrlhf.expansion.expanders import RecordedExpander
from mmrlhf.expansion.request import Request
from mmrlhf.files import read_lines
from mmrlhf.records.pair_rows import import_preference_rows
from mmrlhf.records.questions import read_questions
from mmrlhf.reporting.inputs import StageResult, read_answers
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.summaries.validation_files import read_steps

TEXT = "a\u2028b\u2029c\x85d\x1ce\x0bf\x0cg\u000dh"


def test_lines_end_at_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(f"{TEXT}\nrest".encode())
    assert read_lines(path) == [TEXT, "rest"]
    path.write_bytes(b"ok\n\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_lines(path)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_reader_of_json_lines_keeps_a_text(tmp_path: Path, ascii_only: bool) -> None:
    def write(name: str, *rows: object) -> Path:
        lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        (tmp_path / name).write_bytes(lines.encode())
        return tmp_path / name

    pair = {"id": "1", "prompt": TEXT, "chosen": "y", "rejected": "n"}
    write("data.jsonl", pair, {**pair, "id": "2", "prompt": f"{TEXT}2"})
    groups = [draft.group for draft in import_preference_rows(tmp_path)]  # type: ignore[union-attr]
    assert [group.prompt.plain for group in groups] == [TEXT, f"{TEXT}2"]
    path = write("questions.jsonl", {"prompt": TEXT, "responses": ["a", TEXT]})
    assert [response.text for response in read_questions(path)[0].group.responses] == ["a", TEXT]
    write("step-00000001.jsonl", {"text": TEXT}, {"text": TEXT})
    assert read_steps(tmp_path) == [(1, [{"text": TEXT}, {"text": TEXT}])]
    write("samples.jsonl", {"key": "k", "text": TEXT})
    stage = StageResult("evaluate", tmp_path)
    assert read_answers(stage) == {"k": [{"key": "k", "text": TEXT}]}
    request = Request("k", "h", "p", "r", ())
    expander = RecordedExpander(write("recorded.jsonl", {"digest": request.digest, "text": TEXT}))
    assert [answer.text for _, answer in expander.expand([request])] == [TEXT]


@given(st.lists(st.text(alphabet="ab,\"'\u2028\x85\x0c\x1e ", max_size=6), max_size=4))
def test_a_curve_of_any_name(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("curves") / "curves.csv"
    _open_from(path, 0)
    from csv import writer

    with path.open("a", newline="", encoding="utf-8") as file:
        writer(file, lineterminator="\n").writerows([3, name, 0.5] for name in names)
    assert set(read_curves(path)) == set(names)
