"""Tables of any layout through one function of the user's, row -> record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.converted import import_converted
from mmrlhf.records.draft import Draft, Rejection

CODE = """
def pair(row):
    better, worse = sorted(row["answers"], key=lambda answer: -answer["votes"])[:2]
    return {"id": row["id"], "prompt": row["q"], "chosen": better["text"], "rejected": worse["text"]}

def ranked(row):
    answers = [{"text": text, "rank": place} for place, text in enumerate(row["order"], 1)]
    return {"id": row["id"], "prompt": row["q"], "responses": answers}

def number(row):
    return 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "convert_of_the_test", raising=False)  # of another test's folder
    (tmp_path / "convert_of_the_test.py").write_text(CODE)
    return tmp_path


def _table(folder: Path, rows: list[dict]) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data"


def _answers(*votes: int) -> list[dict]:
    return [{"text": f"answer {number}", "votes": each} for number, each in enumerate(votes)]


def test_rows_become_pairs_and_what_cannot_is_listed_with_its_reason(here: Path) -> None:
    rows = [
        {"id": 1, "q": "what ?", "answers": _answers(1, 5)},
        {"id": 2, "q": "who ?"},
        {"id": 3, "q": "one ?", "answers": _answers(1)},
        {"id": 4, "q": "text ?", "answers": 7},
    ]
    items = list(import_converted(_table(here, rows), convert="convert_of_the_test.pair", source="votes"))
    [draft] = [item for item in items if isinstance(item, Draft)]
    assert [(r.text, r.rank) for r in draft.group.responses] == [("answer 1", 1), ("answer 0", 2)]
    assert draft.group.source == "votes"
    reasons = {item.where.split(" ")[0]: item.where for item in items if isinstance(item, Rejection)}
    assert set(reasons) == {"rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"}
    assert "KeyError: 'answers'" in reasons["rows.jsonl:2"] and "ValueError" in reasons["rows.jsonl:3"]
    with pytest.raises(DataError, match=r"convert_of_the_test.pair cannot read this row(.|\n)*rows.jsonl:2"):
        list(import_converted(here / "data", convert="convert_of_the_test.pair", on_bad_line="error"))


def test_parquet_rows_become_ranked_records(here: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "q": ["what ?"], "order": [["x", "y", "z"]]}), here / "t.parquet")
    [draft] = import_converted(here / "t.parquet", convert="convert_of_the_test.ranked")
    assert isinstance(draft, Draft) and [r.text for r in draft.group.responses] == ["x", "y", "z"]


def test_what_is_no_record_and_no_function_is_said(here: Path) -> None:
    root = _table(here, [{"id": 1}])
    with pytest.raises(DataError, match="not a JSON object"):
        list(import_converted(root, convert="convert_of_the_test.number", on_bad_line="error"))
    with pytest.raises(ConfigError, match=r"importer\.convert"):
        import_converted(root, convert="convert_of_the_test.missing")


@given(votes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=4), min_size=1, max_size=6))
def test_every_row_is_a_query_or_a_rejection(votes: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{"id": i, "q": f"question {i}", "answers": _answers(*each)} for i, each in enumerate(votes)]
    usable = [row for row in rows if len(row["answers"]) > 1]
    root = _table(tmp_path_factory.mktemp("votes"), [{"id": "x", "q": "x", "answers": _answers(1, 2)}, *rows])
    items = list(import_converted(root, convert="convert_of_the_test.pair"))
    assert sum(isinstance(item, Draft) for item in items) == len(usable) + 1
    assert sum(isinstance(item, Rejection) for item in items) == len(rows) - len(usable)
