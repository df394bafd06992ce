"""Stage `expand`: shards to train on, what was refused counted and kept as the reason, no answer asked for twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmrlhf.chain.runtime import Runtime
from mmrlhf.endpoints.answer_store import AnswerStore, request_digest
from mmrlhf.endpoints.completions import FILTERED, Answer, Use
from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.expansion.expanders import RecordedExpander
from mmrlhf.expansion.request import Request
from mmrlhf.responders.spending import CHARS_PER_TOKEN
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import expand


class Writer:
    """Repeats the reason in a sentence, except where the reason holds a word that makes it invent."""

    name = "test"

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.requests: list[Request] = []
        self.stop_after = stop_after

    def describe(self) -> dict[str, str]:
        return {"model": self.name}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        invented = " An elephant stands beside two waterfalls in Norway."
        for request in requests:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request.digest)
            self.requests.append(request)
            text = f"It is {request.reason}.{invented if 'bad' in request.reason else ''}"
            yield request, Answer(text)


class Refusing(Writer):
    """Refuses what an endpoint's moderation would, for ever."""

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for request, answer in super().expand(requests):
            yield request, Answer("", "HTTP 400: not allowed") if "bad" in request.reason else answer


class Busy(Writer):
    """Answers all but the first few requests that it is asked, however often it tries."""

    def __init__(self, busy: int, says: Answer | None) -> None:
        super().__init__()
        self.busy, self.says = busy, says

    def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for number, (request, answer) in enumerate(super().expand(requests)):
            if number >= self.busy or self.says:
                yield request, self.says if number < self.busy and self.says else answer


@pytest.fixture
def runtime(runtime: Runtime, tmp_path: Path) -> Runtime:
    """One store of answers for all runs of a test."""
    return replace(runtime, answers=tmp_path / "answers")


@pytest.fixture
def reasons(tmp_path: Path, small_groups) -> Path:
    """The small queries with reasons of three kinds, and some responses without one."""
    said = ({"short": "good"}, {"short": "bad animal", "evidence": "seen"}, {})
    groups = [
        replace(
            group,
            responses=tuple(replace(r, critiques=said[(i + j) % 3]) for j, r in enumerate(group.responses)),
        )
        for i, group in enumerate(small_groups)
    ]
    folder = tmp_path / "reasons"
    write_shards(groups, folder, max_groups_per_shard=5)
    return folder


def by_reason(folder: Path) -> dict[str, list]:
    found: dict[str, list] = {"good": [], "bad animal": [], "": []}
    index = Index.load(folder)
    for row in range(len(index)):
        for response in index.read(row).responses:
            found[response.critiques.get("short", "")].append(response)
    return found


def test_the_log_names_where_the_requests_end_up(tmp_path, reasons, runtime, caplog):
    with caplog.at_level("INFO"):
        expand.run(tmp_path / "expand" / "0123456789ab.building", shards=reasons, expander=Writer(), runtime=runtime)
    assert f"once the stage is done in {tmp_path / 'expand' / '0123456789ab' / expand.REQUESTS}" in caplog.text


def test_shards_hold_what_may_be_used_and_the_reason_where_it_may_not(tmp_path, reasons, runtime):
    summary = expand.run(tmp_path / "out", shards=reasons, expander=Writer(), runtime=runtime)
    before, after = by_reason(reasons), by_reason(tmp_path / "out" / "shards")
    assert {name: len(found) for name, found in before.items()} == {name: len(found) for name, found in after.items()}
    assert all(r.critiques == {"short": "good", "full": "It is good."} for r in after["good"])
    kept = {"short": "bad animal", "evidence": "seen", "full": "bad animal"}
    assert all(r.critiques == kept for r in after["bad animal"]) and all(r.critiques == {} for r in after[""])
    assert summary["used"] == len(before["good"]) and summary["refused"] == len(before["bad animal"])
    assert summary["refused_by_reason"]["added facts"] == summary["refused"]
    assert summary["responses_without_a_reason"] == len(before[""])
    one, two = Index.load(reasons), Index.load(tmp_path / "out" / "shards")
    for row in range(len(one)):
        first, second = one.read(row), two.read(row)
        assert (first.key, first.prompt, first.media, first.meta) == (
            second.key,
            second.prompt,
            second.media,
            second.meta,
        )
        assert [(r.text, r.rank) for r in first.responses] == [(r.text, r.rank) for r in second.responses]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["examples"]["added facts"][0]["expansion"].startswith("It is bad animal. An elephant")


def test_a_stopped_run_asks_only_for_what_is_missing(tmp_path, reasons, runtime):
    whole = Writer()
    asked = {"shards": reasons, "runtime": runtime}
    expand.run(tmp_path / "whole", expander=whole, shards=reasons, runtime=replace(runtime, answers=tmp_path / "other"))
    first, second = Writer(stop_after=8), Writer()
    with pytest.raises(KeyboardInterrupt):
        expand.run(tmp_path / "out", expander=first, **asked)
    expand.run(tmp_path / "out", expander=second, **asked)
    assert first.asked + second.asked == whole.asked and len(first.asked) == 8, "every answer was kept"
    digests = [Index.load(tmp_path / name / "shards").digest for name in ("whole", "out")]
    assert digests[0] == digests[1]


def test_the_cost_is_known_before_anything_is_asked(tmp_path, reasons, runtime):
    writer = Writer()
    prices = {"price_in": 2.0, "price_out": 8.0, "tokens_per_critique": 100}
    asked = {"shards": reasons, "expander": writer, "runtime": runtime}
    with pytest.raises(ConfigError, match="more than it may"):
        expand.run(tmp_path / "out", max_cost=1e-6, **prices, **asked)
    assert not writer.asked
    estimate = json.loads((tmp_path / "out" / "estimate.json").read_text())
    lines = (tmp_path / "out" / "requests.jsonl").read_text().splitlines()
    assert estimate["requests"] == len(lines) and estimate["tokens_out"] == 100 * len(lines)
    assert estimate["tokens_in"] == sum(len(json.loads(line)["prompt"].split()) for line in lines)
    assert estimate["cost"] == pytest.approx((estimate["tokens_in"] * 2 + estimate["tokens_out"] * 8) / 1e6)
    with pytest.raises(ConfigError, match="needs prices"):
        expand.run(tmp_path / "other", max_cost=1.0, **asked)


def test_requests_can_be_answered_elsewhere(tmp_path, reasons, runtime):
    """The written requests, answered into a file, give what asking directly gives."""
    direct = Writer()
    expand.run(tmp_path / "direct", shards=reasons, expander=direct, runtime=runtime)
    answers = tmp_path / "answers.jsonl"
    lines = [json.loads(line) for line in (tmp_path / "direct" / "requests.jsonl").read_text().splitlines()]
    words = [{"digest": line["digest"], "text": f"It is {_reason(line['prompt'])}."} for line in lines]
    answers.write_text("".join(json.dumps(word) + "\n" for word in words))
    summary = expand.run(tmp_path / "out", shards=reasons, expander=RecordedExpander(answers), runtime=runtime)
    assert summary["used"] == summary["requests"] == len(direct.asked)


def _reason(prompt: str) -> str:
    return prompt.split("[Annotator]: ")[1].split("\n")[0]


def test_data_without_reasons_are_refused(tmp_path, small_shards, runtime):
    with pytest.raises(DataError, match="no response has a 'evidence' critique"):
        expand.run(tmp_path / "out", shards=small_shards, expander=Writer(), source="evidence", runtime=runtime)


def test_what_is_refused_is_counted_and_what_was_paid_is_asked_once(tmp_path, reasons, runtime):
    """A refusal before a model has read anything costs nothing and may depend on the service's settings."""
    first, second = Refusing(), Refusing()
    summary = expand.run(tmp_path / "out", shards=reasons, expander=first, runtime=runtime)
    refused = [digest for digest in summary["refused_by_reason"]]
    assert refused == ["HTTP 400: not allowed"] and summary["refused"] == summary["refused_by_reason"][refused[0]]
    assert {r.critiques["full"] for r in by_reason(tmp_path / "out" / "shards")["bad animal"]} == {"bad animal"}
    again = expand.run(tmp_path / "again", shards=reasons, expander=second, runtime=runtime)
    assert len(second.asked) == summary["refused"] and again["estimate"]["answered"] == summary["used"]
    assert {**again, "estimate": None} == {**summary, "estimate": None}


def test_what_a_moderation_took_away_is_asked_once(tmp_path, reasons, runtime):
    """It was read, and so paid for."""

    class Moderated(Writer):
        def expand(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
            for request, answer in super().expand(requests):
                yield (
                    request,
                    Answer("", FILTERED, use=Use(finish="content_filter")) if len(self.asked) == 1 else answer,
                )

    first, second = Moderated(), Moderated()
    asked = {"shards": reasons, "runtime": runtime}
    summary = expand.run(tmp_path / "out", expander=first, **asked)
    assert summary["refused_by_reason"][FILTERED] == 1
    assert expand.run(tmp_path / "again", expander=second, **asked)["refused_by_reason"][FILTERED] == 1
    assert first.asked and not second.asked


def test_what_was_paid_counts_against_another_limit_and_is_not_asked_again(tmp_path, reasons, runtime):
    """Eight of n answers are there; the rest fits a limit that is too low for them and the rest together."""
    first, second = Writer(stop_after=8), Writer()
    asked = {"shards": reasons, "runtime": runtime, "price_in": 0.0, "price_out": 1e6, "tokens_per_critique": 1}
    with pytest.raises(KeyboardInterrupt):
        expand.run(tmp_path / "one", expander=first, max_cost=1000.0, **asked)
    with AnswerStore(runtime.answers) as store:
        digests = [request_digest({**first.describe(), "prompt": r.prompt}) for r in first.requests]
        kept = [store.get(digest) for digest in digests]
    paid = sum(len(answer.text) / CHARS_PER_TOKEN for answer in kept if answer)
    lines = (tmp_path / "one" / "requests.jsonl").read_text().splitlines()
    left = len(set(lines)) - 8
    with pytest.raises(
        ConfigError, match=f"more than it may(?s:.)*{left} requests, 8 are there(?s:.)*after {paid:.2f}"
    ):
        expand.run(tmp_path / "two", expander=second, max_cost=paid + left - 0.5, **asked)
    assert not second.asked
    expand.run(tmp_path / "two", expander=second, max_cost=paid + left + 0.5, **asked)
    assert len(second.asked) == left and not set(first.asked) & set(second.asked)


def test_answers_of_another_expander_are_not_mixed_in(tmp_path, reasons, runtime):
    one, other = Writer(), Writer()
    other.name = "other"
    expand.run(tmp_path / "out", shards=reasons, expander=one, runtime=runtime)
    expand.run(tmp_path / "out", shards=reasons, expander=other, runtime=runtime)
    assert other.asked == one.asked


@pytest.mark.parametrize("says", [Answer("", "HTTP 503: busy, after 6 tries", failed=True), None], ids=["busy", "mute"])
def test_what_failed_ends_the_stage_and_the_next_run_asks_for_that_alone(tmp_path, reasons, runtime, says) -> None:
    whole, busy, again = Writer(), Busy(3, says), Writer()
    asked = {"shards": reasons, "runtime": runtime}
    expand.run(tmp_path / "whole", expander=whole, shards=reasons, runtime=replace(runtime, answers=tmp_path / "other"))
    with pytest.raises(HubError, match=r"not answered(?s:.)*3 of \d+(?s:.)*same command") as error:
        expand.run(tmp_path / "out", expander=busy, **asked)
    assert ("503" in str(error.value)) == (says is not None)
    summary = expand.run(tmp_path / "out", expander=again, **asked)
    assert again.asked == whole.asked[:3] and summary["failed"] == 0
    digests = [Index.load(tmp_path / name / "shards").digest for name in ("whole", "out")]
    assert digests[0] == digests[1]


def test_one_that_failed_may_be_counted(tmp_path, reasons, runtime) -> None:
    """The budget is that of damaged queries: one in any case."""
    busy = Busy(1, Answer("", "HTTP 500: no", failed=True))
    summary = expand.run(tmp_path / "out", shards=reasons, expander=busy, runtime=runtime)
    assert summary["failed"] == 1 and summary["refused_by_reason"]["HTTP 500: no"] == 1
    assert summary["used"] + summary["refused"] + summary["failed"] == summary["requests"]
    again = Writer()
    expand.run(tmp_path / "again", shards=reasons, expander=again, runtime=runtime)
    assert again.asked == busy.asked[:1], "what failed was not kept"
