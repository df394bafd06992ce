"""Judged benchmarks: verdicts are cached, counted and paid for; a missing one is never a score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
from stand_ins.judge_stand_in import JudgeServer, judge_server

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.judging.judge_model import JudgeSettings
from mmrlhf.judging.verdict_words import NoVerdict, last_word
from mmrlhf.stages import report_benchmarks, suite_answers, suite_documents, suite_scores
from mmrlhf.suites.columns import COLUMNS
from mmrlhf.suites.document_scores import read_results
from mmrlhf.suites.documents import DocumentStore
from mmrlhf.suites.judged_forms import JUDGED
from mmrlhf.suites.known_policies import Constant, Oracle
from mmrlhf.suites.standins import STANDINS

TASKS = [task for task in STANDINS if task not in COLUMNS and task != "object_hal_bench"]
SIZE = 4


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as found:
        yield found


@pytest.fixture
def judge(server) -> JudgeSettings:
    return JudgeSettings(server.url, "judge", retries=1, concurrency=2, timeout=0.5)


@pytest.fixture
def runtime(tmp_path) -> Runtime:
    trainer = partial(L.Trainer, accelerator="cpu")
    return Runtime(trainer=trainer, progress=False, verdicts=tmp_path / "verdicts")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("judged")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    suite_documents.run(out, tasks=TASKS, limit=SIZE, drawn=True, runtime=runtime)
    return out


def answered(tmp_path: Path, drawn: Path, known, runtime, name: str = "answers") -> Path:
    suite_answers.run(tmp_path / name, documents=drawn, known=known, runtime=runtime)
    return tmp_path / name


def scored(tmp_path: Path, drawn: Path, answers: Path, judge, runtime, name: str = "scores") -> dict:
    return suite_scores.run(tmp_path / name, documents=drawn, answers=answers, judge=judge, runtime=runtime)


def test_every_judged_number_is_what_the_oracle_knows(tmp_path, drawn, judge, server, runtime):
    assert len(TASKS) == 11, "MMHal-Bench, LLaVA-W, Wilder, and eight sets of the safety benchmark"
    oracle = Oracle(p=0.5)
    answers = answered(tmp_path, drawn, oracle, runtime)
    found = scored(tmp_path, drawn, answers, judge, runtime)
    knows = {(d.task, d.name): oracle.knows(d) for d in DocumentStore(drawn).read()}
    for result in read_results(tmp_path / "scores"):
        right = knows[result.task, result.document]
        # ratings are 8 for a fair answer and 2 for a zebra: 100, or 25 in hundredths of the reference's
        expected = {"mmhal_bench": 6.0, "llava_in_the_wild": 100.0, "llava_wilder_small": 100.0}.get(result.task, 1.0)
        wrong = 25.0 if expected == 100.0 else 0.0
        assert result.score == (expected if right else wrong), result
    jailbreak = found["benchmarks"]["safety_multimodal"]
    assert jailbreak["aggregates"]["declines"] == jailbreak["score"]["mean"]
    shown = [m["content"] for asked in server.seen for m in asked["messages"] if not isinstance(m["content"], str)]
    assert shown[0][0]["image_url"]["url"].startswith("data:image/png"), "Wilder's judge sees the picture"
    assert 0 < len(shown) <= 2 * SIZE
    assert {asked["model"] for asked in server.seen} == {"judge"}


def test_a_verdict_is_asked_once(tmp_path, drawn, judge, server, runtime):
    answers = answered(tmp_path, drawn, Constant("A zebra flies over it."), runtime)
    first = scored(tmp_path, drawn, answers, judge, runtime)["judge"]
    asked = len(server.seen)
    again = scored(tmp_path, drawn, answers, replace(judge, url="http://127.0.0.1:9/v1"), runtime, "again")["judge"]
    assert first["asked"] == asked and first["cached"] < asked, "the same question of two documents is asked once"
    assert again["asked"] == 0 and again["cached"] == 13 * SIZE, "two for each pair, one for each other document"
    assert (tmp_path / "again/scores.jsonl").read_bytes() == (tmp_path / "scores/scores.jsonl").read_bytes()


@pytest.mark.parametrize("failure", ["hang", "error", "I think it is fine.", "Verdict: A or Verdict: B", ""])
def test_a_verdict_that_does_not_come_is_no_score(tmp_path, drawn, judge, server, runtime, failure):
    """The scoring ends and says where; what came is kept, and the next start asks for the rest alone."""
    answers = answered(tmp_path, drawn, Oracle(p=0.5), runtime)
    server.failing, judge = [failure] * 2, replace(judge, retries=0)
    with pytest.raises((DataError, HubError)) as caught:
        scored(tmp_path, drawn, answers, judge, runtime)
    assert "verdicts are missing" in str(caught.value) and "mmhal_bench" in str(caught.value)
    assert not (tmp_path / "scores" / "scores.jsonl").exists()
    server.seen.clear()
    found = scored(tmp_path, drawn, answers, judge, runtime)
    assert all(row["scored"] == SIZE and not row["left_out"] for row in found["benchmarks"].values())
    assert found["judge"]["cached"] >= SIZE - 2


def test_a_picture_that_a_judge_cannot_be_shown_leaves_its_answer_without_a_verdict(
    tmp_path, drawn, judge, server, runtime
):
    """Wilder's judge sees pictures; above the limit it is not asked, nothing is averaged in, and the reason is said."""
    answers = answered(tmp_path, drawn, Oracle(p=1), runtime)
    asked = {"documents": drawn, "answers": answers, "max_pixels": 1000, "runtime": runtime}
    with pytest.raises(DataError, match="verdicts are missing") as caught:
        suite_scores.run(tmp_path / "none", judge=judge, **asked)
    assert caught.value.where == "llava_wilder_small" and "image has too many pixels" in str(caught.value.given)
    found = suite_scores.run(tmp_path / "scores", judge=replace(judge, max_missing=1.0), **asked)
    assert found["benchmarks"]["llava_wilder_small"]["left_out"] == {"no verdict": SIZE}
    assert {name for name, row in found["benchmarks"].items() if row["scored"]} == {*TASKS} - {"llava_wilder_small"}
    assert not any(isinstance(m["content"], list) for request in server.seen for m in request["messages"])


def test_a_few_missing_verdicts_are_left_out_and_counted(tmp_path, drawn, judge, server, runtime):
    server.failing = ["I think it is fine."]
    answers = answered(tmp_path, drawn, Oracle(p=1), runtime)
    found = scored(tmp_path, drawn, answers, replace(judge, max_missing=0.3), runtime)
    row = found["benchmarks"]["mmhal_bench"]
    assert row["left_out"] == {"no verdict": 1} and row["scored"] == SIZE - 1
    assert row["score"]["mean"] == 6.0, "the one that is missing is not averaged in"
    assert found["judge"]["failed"] == {"no verdict": 1}
    report = report_benchmarks.run(
        tmp_path / "r", before=tmp_path / "scores", after=tmp_path / "scores", documents=drawn, runtime=runtime
    )
    assert report["benchmarks"]["mmhal_bench"]["left_out"] == {"no verdict": 1}
    assert "word lists differ" in (tmp_path / "r" / "benchmarks.html").read_text()


def test_a_judge_that_prefers_a_place_favours_nobody(tmp_path, drawn, judge, server, runtime):
    """9 to 5 for whatever comes first: one order alone says 56 or 180, both say the same of every answer."""
    server.prefers_first = True
    found = scored(tmp_path, drawn, answered(tmp_path, drawn, Oracle(p=0.5), runtime), judge, runtime)
    row = found["benchmarks"]["llava_in_the_wild"]
    assert row["score"]["mean"] == pytest.approx(50 * (5 / 9 + 9 / 5)) and row["score"]["low"] is None


def test_what_judging_may_cost(tmp_path, drawn, judge, server, runtime):
    answers = answered(tmp_path, drawn, Oracle(p=1), runtime)
    paid = replace(judge, price_in=10.0, price_out=30.0)
    with pytest.raises(ConfigError, match="cost more") as caught:
        scored(tmp_path, drawn, answers, replace(paid, max_cost=0.01), runtime)
    assert not server.seen and "judge.max_cost" in str(caught.value)
    assert 0 < scored(tmp_path, drawn, answers, replace(paid, max_cost=100.0), runtime)["judge"]["cost"] < 1


def test_no_judge_and_half_a_judge_are_said(tmp_path, drawn, runtime):
    answers = answered(tmp_path, drawn, Oracle(p=1), runtime)
    with pytest.raises(ConfigError, match="need a judge"):
        scored(tmp_path, drawn, answers, None, runtime)
    with pytest.raises(ConfigError, match="an address and a model"):
        JudgeSettings(url="http://localhost/v1")


def test_a_wrong_address_ends_the_run(tmp_path, drawn, judge, runtime):
    answers = answered(tmp_path, drawn, Oracle(p=1), runtime)
    with pytest.raises(HubError, match="does not answer as it should"):
        scored(tmp_path, drawn, answers, replace(judge, url=f"{judge.url}/v1"), runtime)


def test_verdicts_are_read_or_not():
    assert last_word("so.\n**Verdict: B**", "verdict", "[ABC]") == "B"
    assert last_word("Verdict: B ... Verdict: B", "verdict", "[ABC]") == "B"
    for text in (
        "",
        "B",
        "Verdict: Bad",
        "Verdict: A. Verdict: C",
        "Verdict: D",
        "Verdict: a bit of both",
        "Verdict: A/C",
    ):
        with pytest.raises(NoVerdict):
            last_word(text, "verdict", "[ABC]")


def test_the_official_prompt_can_be_given(tmp_path, drawn, runtime):
    official = tmp_path / "official.txt"
    official.write_text("contents {}; question {}; right {}; answer {}; Rating: 0 to 6")
    out = tmp_path / "documents"
    suite_documents.run(
        out, tasks=["mmhal_bench"], limit=2, drawn=True, prompts={"mmhal_bench": str(official)}, runtime=runtime
    )
    document = DocumentStore(out).read()[0]
    (text,) = JUDGED["mmhal"].ask(document.truth, document.prompt, "it")
    assert text.startswith("contents ") and f"question {document.prompt}; right There is" in text
    assert "answer it; Rating" in text


@pytest.mark.parametrize(
    "words", [b"{name} {} {} {} {}", b'say {"x": 1} {} {} {} {}', b"{} {} {}", b"{} {} {} {} {}", b"\xff\xfe", b""]
)
def test_words_that_a_judge_cannot_be_asked_with_are_refused(tmp_path, runtime, words):
    (tmp_path / "official.txt").write_bytes(words)
    prompts = {"mmhal_bench": str(tmp_path / "official.txt")}
    with pytest.raises(ConfigError, match="cannot be asked with these words"):
        suite_documents.run(
            tmp_path / "o", tasks=["mmhal_bench"], limit=1, drawn=True, prompts=prompts, runtime=runtime
        )
    assert not (tmp_path / "o" / "documents.jsonl").exists()
