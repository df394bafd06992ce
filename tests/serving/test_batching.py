"""Queries that wait are batched, share what they have in common, and depend on nothing that runs beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.verdicts import Verdict
from mmrlhf.models.settings import ModelSettings
from mmrlhf.serving import batching
from mmrlhf.serving.batching import Batcher
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.merging import content_key, merge, part
from mmrlhf.serving.refusals import Refusal
from mmrlhf.types import PreferenceGroup, Response


def query(prompt: str, *responses: str) -> PreferenceGroup:
    group = PreferenceGroup("", prompt, tuple(map(Response, responses)))
    return replace(group, key=content_key(group))


@dataclass
class _Encoded:
    num_tokens: int
    branches: tuple[int, ...] = ()


class _Encoder:
    """Ten tokens a response."""

    def __call__(self, group: PreferenceGroup) -> _Encoded:
        if any("bad" in response.text for response in group.responses):
            raise DataError("bad", given="a bad response")
        return _Encoded(10 * len(group.responses), tuple(range(len(group.responses))))

    context = __call__


@dataclass
class Judge:
    """Scores a response by its length; waits at a door while it is closed."""

    token_budget: int = 100
    writes_critiques: bool = False
    in_turn: bool = False
    critiques: CritiqueSettings = field(default_factory=CritiqueSettings)
    batches: list[list[tuple[str, int]]] = field(default_factory=list)
    door: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    encoder: Any = field(default_factory=_Encoder)

    def another_encoder(self) -> Any:
        return self.encoder

    def score_groups(self, groups: Sequence[PreferenceGroup], encoded: Sequence[Any]) -> list[list[Verdict]]:
        self.begun.set()
        assert self.door.wait(10)
        self.batches.append([(group.prompt.question, len(group.responses)) for group in groups])
        if any("fail" in response.text for group in groups for response in group.responses):
            raise RuntimeError("no")
        return [[Verdict(float(len(r.text)), "", 0) for r in group.responses] for group in groups]


@contextmanager
def batcher(judge: Judge, **limits: Any) -> Iterator[Batcher]:
    """A batcher of a fake judge; its door is opened at the end at the latest."""
    running = Batcher(judge, limits=Limits(**limits), groups_per_batch=8, encoders=1, measures=Measures())  # type: ignore[arg-type]
    try:
        yield running
    finally:
        judge.door.set()
        running.stop()


def blocked(running: Batcher, judge: Judge) -> Future[list[Verdict]]:
    """Let the judge begin with something, so that what comes next waits."""
    first = running.submit(query("first", "x"))
    assert judge.begun.wait(10)
    return first


def rewards(future: Future[list[Verdict]]) -> list[float]:
    return [verdict.reward for verdict in future.result(10)]


def test_what_waits_is_scored_together_up_to_the_budget() -> None:
    judge = Judge()
    with batcher(judge) as running:
        first = blocked(running, judge)
        later = [running.submit(query(f"q{n}", "a", "bb", "ccc")) for n in range(7)]  # 30 tokens each, 100 fit
        time.sleep(0.1)
        judge.door.set()
        assert rewards(first) == [1] and all(rewards(each) == [1, 2, 3] for each in later)
    assert [len(batch) for batch in judge.batches] == [1, 3, 3, 1]


class _SlowJudge(Judge):
    def score_groups(self, groups: Sequence[PreferenceGroup], encoded: Sequence[Any]) -> list[list[Verdict]]:
        time.sleep(0.02)
        return super().score_groups(groups, encoded)


def test_a_lone_asker_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that asks again as soon as it is answered."""
    monkeypatch.setattr(batching, "_LINGER", 1000.0)  # 20 s, twice as long as an answer is waited for here
    judge = _SlowJudge()
    judge.door.set()
    with batcher(judge) as running:
        answered: Future[None] = Future()

        def ask_again(_: Future[list[Verdict]]) -> None:
            again = running.submit(query("second", "b"))
            again.add_done_callback(lambda _: answered.set_result(None))

        running.submit(query("first", "a")).add_done_callback(ask_again)
        answered.result(10)
        assert rewards(running.submit(query("third", "ccc"))) == [3]
    assert judge.batches == [[("first", 1)], [("second", 1)], [("third", 1)]]


def test_after_a_query_that_fails_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many askers are expected as were there last, whether these were answered or refused."""
    judge = _SlowJudge()
    with batcher(judge) as running:
        blocked(running, judge)
        together = [running.submit(query(f"one of {number}", "a")) for number in range(3)]
        time.sleep(0.1)
        judge.door.set()
        wait(together)
        monkeypatch.setattr(batching, "_LINGER", 1000.0)  # 20 s, twice as long as an answer is waited for here
        with pytest.raises(Refusal):
            running.submit(query("failing", "fail")).result(10)
        assert rewards(running.submit(query("alone", "ccc"))) == [3]


def test_queries_with_one_prefix_are_one_query() -> None:
    """Each response's text once, and each asker gets the verdicts on its own, in its order."""
    judge = Judge(token_budget=20)
    with batcher(judge) as running:
        blocked(running, judge)
        filler = [running.submit(query(f"filler{n}", "x")) for n in range(3)]
        one, other = running.submit(query("same", "a", "bb")), running.submit(query("other", "a"))
        two = running.submit(query("same", "ccc", "a"))
        time.sleep(0.1)
        judge.door.set()
        wait(filler)
        assert (rewards(one), rewards(two), rewards(other)) == ([1, 2], [3, 1], [1])
    assert ("same", 3) in [each for batch in judge.batches for each in batch]


def are_merged(judge: Judge) -> bool:
    """Whether two queries with one prefix, which wait together, are asked as one."""
    with batcher(judge) as running:
        blocked(running, judge)
        for number in range(3):
            running.submit(query(f"filler{number}", "x"))
        both = [running.submit(query("same", "a", "bb")), running.submit(query("same", "ccc"))]
        time.sleep(0.1)
        judge.door.set()
        assert [rewards(each) for each in both] == [[1, 2], [3]]
    return ("same", 3) in [each for batch in judge.batches for each in batch]


VOTE = CritiqueSettings(num_samples=2, temperature=1.0, combine="vote")


@pytest.mark.parametrize(
    ("asked", "merged"),
    [({}, True), ({"critiques": VOTE}, True), ({"critiques": VOTE, "writes_critiques": True}, False),
     ({"in_turn": True}, False), ({"in_turn": True, "critiques": CritiqueSettings(orders="drawn")}, False)],
    ids=["alone", "no critiques to vote", "a vote", "in turn", "in one order"],
)  # fmt: skip
def test_what_depends_on_the_other_responses_is_one_querys_own(
    asked: dict[str, Any], merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrlhf.serving.batching.Batcher._cost", lambda self, encoded: encoded.num_tokens)
    assert are_merged(Judge(token_budget=20, **asked)) is merged


@pytest.mark.parametrize(("orders", "batches"), [("drawn", [1, 3, 1]), ("all", [1, 1, 1, 1, 1])])
def test_every_order_of_responses_in_turn_counts(orders: str, batches: list[int]) -> None:
    """Three responses of ten tokens each take thirty, in each of three orders; a hundred fit."""
    judge = Judge(in_turn=True, critiques=CritiqueSettings(orders=orders))  # type: ignore[arg-type]
    with batcher(judge) as running:
        blocked(running, judge)
        later = [running.submit(query(f"q{n}", "a", "bb", "ccc")) for n in range(4)]
        time.sleep(0.1)
        judge.door.set()
        assert all(rewards(each) == [1, 2, 3] for each in later)
    assert [len(batch) for batch in judge.batches] == batches


def test_no_more_responses_are_merged_than_one_query_may_have() -> None:
    judge = Judge()
    with batcher(judge, max_responses=3) as running:
        blocked(running, judge)
        filler = [running.submit(query(f"filler{n}", *"abc")) for n in range(4)]
        both = [running.submit(query("same", "a", "bb")), running.submit(query("same", "ccc", "dddd"))]
        time.sleep(0.1)
        judge.door.set()
        assert [rewards(each) for each in both] == [[1, 2], [3, 4]]
        wait(filler)
    assert max(count for batch in judge.batches for _, count in batch) == 3


@pytest.mark.parametrize("word", ["bad", "fail"])
def test_one_bad_query_is_refused_alone(word: str) -> None:
    """Where its encoding fails, and where the model fails; also beside others with its prefix."""
    judge = Judge(token_budget=1000)
    with batcher(judge) as running:
        blocked(running, judge)
        filler = running.submit(query("filler", "x"))
        good = [running.submit(query("same", "a")), running.submit(query("other", "bb"))]
        bad = running.submit(query("same", word))
        time.sleep(0.1)
        judge.door.set()
        assert [rewards(each) for each in (*good, filler)] == [[1], [2], [1]]
        with pytest.raises(Refusal) as refusal:
            bad.result(10)
    assert (refusal.value.status, refusal.value.field) == ((422, "messages") if word == "bad" else (500, ""))


def test_a_query_that_was_taken_back_is_not_scored() -> None:
    judge = Judge(token_budget=20)
    with batcher(judge) as running:
        blocked(running, judge)
        filler = [running.submit(query(f"filler{n}", "x")) for n in range(4)]
        time.sleep(0.1)
        gone = running.submit(query("gone", "x"))
        assert gone.cancel()
        judge.door.set()
        wait(filler)
    assert "gone" not in [prompt for batch in judge.batches for prompt, _ in batch]


def test_a_query_that_was_taken_back_gives_its_place_to_another() -> None:
    """Clients that gave up are not waited behind."""
    judge = Judge(token_budget=10)
    with batcher(judge, max_waiting=2) as running:
        first = blocked(running, judge)
        encoded = running.submit(query("encoded", "x"))
        time.sleep(0.1)  # until it is encoded, and no more is as long as the judge is at work
        gone = [running.submit(query(f"gone{number}", "x")) for number in range(2)]
        with pytest.raises(Refusal, match="2 queries are waiting already"):
            running.submit(query("too many", "x"))
        assert all(each.cancel() for each in gone)
        late = running.submit(query("late", "bb"))
        judge.door.set()
        assert [rewards(each) for each in (first, encoded, late)] == [[1], [1], [2]]
    assert [batch[0][0] for batch in judge.batches] == ["first", "encoded", "late"]


def test_a_response_that_does_not_fit_is_the_field_that_is_named(scalar_model: Path) -> None:
    passes = PassSettings(model=ModelSettings(max_tokens=100, too_long="refuse"))
    judge = RewardModel.from_pretrained(scalar_model, passes, device="cpu")
    running = Batcher(judge, limits=Limits(), groups_per_batch=8, encoders=1, measures=Measures())
    try:
        for asked, field in (
            (query("?", "a", "red " * 300), "responses[1]"),
            (query("red " * 300, "a", "b"), "messages"),
        ):
            with pytest.raises(Refusal, match="longer than the model's context") as refusal:
                running.submit(asked).result(30)
            assert (refusal.value.status, refusal.value.field) == (422, field)
    finally:
        running.stop()


def test_what_was_submitted_is_finished_and_nothing_more_is_taken() -> None:
    judge = Judge()
    with batcher(judge) as running:
        blocked(running, judge)
        waiting = [running.submit(query(f"q{n}", "a", "bb", "ccc")) for n in range(9)]
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        time.sleep(0.1)
        with pytest.raises(Refusal) as refusal:
            running.submit(query("late", "x"))
        judge.door.set()
        stopping.join(10)
        assert all(each.done() for each in waiting)
    assert refusal.value.status == 503 and all(rewards(each) == [1, 2, 3] for each in waiting)


def test_no_more_wait_than_may() -> None:
    judge = Judge(token_budget=10)
    with batcher(judge, max_waiting=2) as running:
        blocked(running, judge)
        taken = []
        with pytest.raises(Refusal, match="waiting already"):
            for number in range(9):
                taken.append(running.submit(query(f"q{number}", "a")))
                time.sleep(0.02)
        judge.door.set()
        assert all(rewards(each) == [1] for each in taken) and 2 <= len(taken) < 9


def test_a_query_above_the_limit_is_refused() -> None:
    judge = Judge()
    judge.door.set()
    with batcher(judge, max_query_tokens=25) as running, pytest.raises(Refusal) as refusal:
        running.submit(query("q", "a", "b", "c")).result(10)
    assert (refusal.value.status, refusal.value.field) == (413, "responses")


texts = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=1, max_size=4)


@given(st.lists(texts, min_size=1, max_size=4))
def test_merged_queries_part_again(lists: list[list[str]]) -> None:
    groups = [query("same", *each) for each in lists]
    merged = merge(groups)
    assert len({response.text for response in merged.responses}) == len(merged.responses)
    verdicts = [Verdict(float(len(response.text)), response.text, 0) for response in merged.responses]
    for group, own in zip(groups, lists, strict=True):
        assert [verdict.critique for verdict in part(group, merged, verdicts)] == own


def test_a_key_is_what_is_asked() -> None:
    assert query("a", "x").key == query("a", "y", "z").key != query("b", "x").key


def test_merged_queries_get_the_rewards_that_they_get_alone(critic: Path) -> None:
    """With a real model that writes critiques: the shared prefix changes nothing."""
    judge = RewardModel.from_pretrained(critic, critiques=CritiqueSettings(max_tokens=6), device="cpu")
    groups = [query("red ?", "a circle", "no"), query("red ?", "yes", "a circle"), query("blue ?", "left", "no")]
    alone = [judge.score_groups([group])[0] for group in groups]
    merged = merge(groups[:2])
    running = Batcher(judge, limits=Limits(), groups_per_batch=8, encoders=1, measures=Measures())
    found = [each.result(60) for each in [running.submit(group) for group in (merged, *groups)]]
    running.stop()
    for own, want in zip(found[1:], alone, strict=True):
        assert [v.critique for v in own] == [v.critique for v in want]
        assert [v.reward for v in own] == pytest.approx([v.reward for v in want], abs=1e-4)
    shared = part(groups[1], merged, found[0])
    assert [v.reward for v in shared] == pytest.approx([v.reward for v in alone[1]], abs=1e-4)
