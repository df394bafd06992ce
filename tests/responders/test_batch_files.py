"""Batch files: under the services' limits, and read whatever order and form the results have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import DataError
from mmrlhf.responders.batch_files import PATH, custom_id, read_results, write_requests


def completion(text: str | None, finish: str = "stop") -> dict:
    return {"model": "big", "choices": [{"message": {"content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}}  # fmt: skip


def openai(name: str, text: str | None, finish: str = "stop") -> dict:
    response = {"status_code": 200, "request_id": "r", "body": completion(text, finish)}
    return {"id": "b", "custom_id": name, "response": response, "error": None}


def failed(name: str, status: int, **error: str) -> dict:
    return {"custom_id": name, "response": {"status_code": status, "body": {"error": error}}, "error": None}


def written(path: Path, *rows: dict | bytes) -> Path:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 5), st.integers(420, 900))
def test_no_file_is_above_a_limit_and_no_request_is_lost(tmp_path_factory, sizes, max_requests, max_bytes) -> None:
    folder = tmp_path_factory.mktemp("batch")
    asked = [(custom_id(f"k{n}", "big", 0), {"messages": "x" * size}) for n, size in enumerate(sizes)]
    files = write_requests(folder, "big", iter(asked), max_requests=max_requests, max_bytes=max_bytes)
    lines = [path.read_text().splitlines(keepends=True) for path in files]
    assert all(len(each) <= max_requests and sum(map(len, each)) <= max_bytes for each in lines)
    rows = [json.loads(line) for each in lines for line in each]
    assert [(row["custom_id"], row["body"]) for row in rows] == asked
    assert all(row["method"] == "POST" and row["url"] == PATH for row in rows) and files == sorted(files)
    for one, two in zip(lines, lines[1:], strict=False):
        assert len(one) == max_requests or sum(map(len, one)) + len(two[0]) > max_bytes, "files are filled"


def test_other_requests_take_the_place_of_those_that_were_there(tmp_path: Path) -> None:
    write_requests(tmp_path, "big", [(str(n), {}) for n in range(9)], max_requests=2, max_bytes=1000)
    (tmp_path / "other-00000.jsonl").write_text("somebody else's")
    (only,) = write_requests(tmp_path, "big", [("1", {})], max_requests=2, max_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [only.name, "other-00000.jsonl"]
    with pytest.raises(DataError, match=r"larger than a file(?s:.)*longest_side"):
        write_requests(tmp_path, "big", [("1", {"x": "x" * 999})], max_requests=2, max_bytes=500)


FORMS = {
    "OpenAI": openai("a~b~0", "said"),
    "vLLM, flat": {"custom_id": "a~b~0", "response": completion("said"), "error": None},
    "body as text": {"custom_id": "a~b~0", "response": {"status_code": 200, "body": json.dumps(completion("said"))}},
    "no response at all": {"custom_id": "a~b~0", **completion("said")},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_result_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    found = read_results([written(tmp_path / "r.jsonl", FORMS[form])])
    assert found.answers == {"a~b~0": Answer("said")} and not found.unused
    assert found.answers["a~b~0"].use.tokens_out == 2 and found.answers["a~b~0"].use.model == "big"


@pytest.mark.parametrize(
    ("row", "reason", "final"),
    [
        (openai("a", None, "content_filter"), "filtered", True),
        (openai("a", "half of", "length"), "cut off", True),
        (openai("a", ""), "empty", True),
        (failed("a", 400, code="invalid", message="too long"), "HTTP 400", True),
        (failed("a", 400, code="content_filter"), "filtered", True),
        (failed("a", 500, message="oops"), "HTTP 500", False),
        (failed("a", 429, message="slow down"), "HTTP 429", False),
        (
            {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "24h"}},
            "batch error batch_expired",
            False,
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_answer_has_a_reason(tmp_path: Path, row: dict, reason: str, final: bool) -> None:
    answer = read_results([written(tmp_path / "errors.jsonl", row)]).answers["a"]
    assert answer.reason == reason and answer.failed != final and answer.problem


def test_order_repeats_failures_elsewhere_and_damage(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", failed("b", 500), openai("a", "first"), b'{"custom_id": "d", "respon')
    two = written(tmp_path / "2.jsonl", openai("b", "later"), openai("a", "second"), b"[1]\n", b"\n", failed("a", 500))
    found = read_results([one, two])
    assert found.answers == {"a": Answer("first"), "b": Answer("later")}
    assert found.unused == {
        "no line of results (JSONDecodeError)": 1, "no line of results (TypeError)": 1,
        "a failure of a request that was answered elsewhere": 1, "another line for a request that has one": 2,
    }  # fmt: skip
    assert found.first_unused["no line of results (JSONDecodeError)"].endswith("1.jsonl:3")


@pytest.mark.parametrize("turned", [False, True])
def test_an_answer_wins_over_a_refusal_and_a_refusal_over_what_may_pass(tmp_path: Path, turned: bool) -> None:
    """As where a request that was refused was sent to another service, whose results lie beside the first one's."""
    rows = [failed("a", 500), failed("a", 400, code="invalid"), openai("a", "said"), failed("b", 429), failed("b", 400)]
    found = read_results([written(tmp_path / "r.jsonl", *(rows[::-1] if turned else rows))])
    assert found.answers["a"] == Answer("said")
    assert found.answers["b"].reason == "HTTP 400" and not found.answers["b"].failed
    assert sum(found.unused.values()) == 3


NAMES = ["custom_id", "response", "body", "error", "choices", "status_code", "message"]


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_line(tmp_path_factory, line: bytes) -> None:
    found = read_results([written(tmp_path_factory.mktemp("any") / "r.jsonl", line)])
    assert all(isinstance(answer, Answer) for answer in found.answers.values())
