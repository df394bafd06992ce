"""Ballots: what is asked, and what is read out of a judge's words, as the benchmarks' own scripts read it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.judging.ballots import BALLOTS, LETTERS, ballot_of
from mmrlhf.judging.polling import Polling, questions_of
from mmrlhf.judging.verdict_words import NoVerdict
from mmrlhf.types import PreferenceGroup, Response

NONE = None
READ = [
    ("pair", "Verdict: B", 2, 1),
    ("pair", "Verdict: A ... **Verdict: A**", 2, 0),
    ("pair", "Verdict: A, or Verdict: B", 2, NONE),
    ("pair", "Verdict: B is better, and not only a bit", 2, 1),
    ("pair", "Verdict: A, a better one than B", 2, 0),
    # who names both, or none, has chosen none
    ("pair", "Verdict: a tie", 2, NONE),
    ("pair", "Verdict: A tie.", 2, NONE),
    ("pair", "Verdict: a close call", 2, NONE),
    ("pair", "Verdict: A or B", 2, NONE),
    ("pair", "Verdict: A and B are equally good", 2, NONE),
    ("pair", "Verdict: A/B", 2, NONE),
    ("pair", "Verdict: A, B", 2, NONE),
    ("best", "Verdict: B or D", 4, NONE),
    ("best", "Verdict: d", 4, 3),
    ("best", "Verdict: E", 4, NONE),
    # the sentence may be in stars, over lines, and slightly so; of several the last counts
    ("vl_rewardbench", "**Overall Judgment:** Answer 2 is better.", 2, 1),
    ("vl_rewardbench", "Overall Judgment:\n\nAnswer 1 is slightly better.", 2, 0),
    ("vl_rewardbench", "Therefore, I think answer 1 is the better one", 2, 0),
    ("vl_rewardbench", "Overall Judgment: not that Answer 1 is better, Answer 2 is better", 2, 1),
    ("vl_rewardbench", "Answer 2 is better. Overall Judgment: hard to say", 2, NONE),
    ("vl_rewardbench", "Answer 1 is better.", 2, NONE),
    ("vl_rewardbench", "Overall Judgment: Answer 3 is better.", 2, NONE),
    # the first letter of the alphabet counts, wherever it stands
    ("multimodal_rewardbench", "[[B]]", 2, 1),
    ("multimodal_rewardbench", "[[B]], no, [[A]]", 2, 0),
    ("multimodal_rewardbench", "[A]", 2, NONE),
    ("multimodal_rewardbench", "[[C]]", 2, NONE),
    ("rewardbench_2", "so [[D]]", 4, 3),
    ("rewardbench_2_ties", "It is fine.\n\n9", 1, 9),
    ("rewardbench_2_ties", "10 \n", 1, 10),
    ("rewardbench_2_ties", "**9**", 1, NONE),
    ("rewardbench_2_ties", "11", 1, NONE),
    ("rewardbench_2_ties", "9 of 10, I say", 1, NONE),
    ("rating", "Rating: 10", 1, 10),
    ("rating", "Rating: 8/10", 1, 8),
    ("rating", "Rating: 8 out of 10.", 1, 8),
    ("rating", "Rating: 0", 1, NONE),
    # half a point is none of the ten, and is not rounded
    ("rating", "Rating: 7.5", 1, NONE),
    ("rating", "Rating: 9,5/10", 1, NONE),
    ("rating", "Rating: 7-8", 1, NONE),
    ("rating", "Rating: 7 or 8", 1, NONE),
    ("rating", "Rating: 7 ... Rating: 8", 1, NONE),
]


@pytest.mark.parametrize(("name", "words", "number", "expected"), READ)
def test_what_is_read(name, words, number, expected):
    if expected is NONE:
        with pytest.raises(NoVerdict):
            BALLOTS[name].read(words, number)
    else:
        assert BALLOTS[name].read(words, number) == expected


@given(st.text(), st.lists(st.text(), min_size=2, max_size=5))
def test_what_is_asked_holds_the_texts_as_they_are(question, answers):
    """Also where they spell places; and what a judge says that follows the words is read."""
    for name, ballot in BALLOTS.items():
        own = answers[: {"pair": 2, "rating": 1}.get(ballot.form, len(answers))]
        asked = ballot.request(question, own)
        assert question in asked and all(answer in asked for answer in own)
        last = [place for place, _ in enumerate(own)][-1]
        said = {"vl_rewardbench": f"Overall Judgment: Answer {last + 1} is better."}.get(name)
        said = said or ("Rating: 7" if name == "rating" else "7" if ballot.form == "rating" else "")
        said = said or (f"[[{LETTERS[last]}]]" if "bench" in name else f"Verdict: {LETTERS[last]}")
        assert ballot.read(said, len(own)) == (7 if ballot.form == "rating" else last)


def test_a_benchmark_has_its_own_ballot():
    def group(source: str, category: str = "") -> PreferenceGroup:
        return PreferenceGroup("k", "?", (Response("a", 1), Response("b", 2)), source=source, category=category)

    assert ballot_of(group("VL-RewardBench"), "auto") == "vl_rewardbench"
    assert ballot_of(group("VL-RewardBench"), "pair") == "pair"
    assert ballot_of(group("mine"), "auto") == "pair"
    assert ballot_of(group("RewardBench 2", "Math"), "auto") == "rewardbench_2"
    assert ballot_of(group("RewardBench 2", "Ties"), "auto") == "rewardbench_2_ties"


def test_official_words_come_from_a_file(tmp_path):
    words = tmp_path / "official.txt"
    words.write_text("Judge {this}.\n[Q] {question} [A] {answer_a} [B] {answer_b}")
    polling = Polling(ballot="multimodal_rewardbench", words=str(words))
    group = PreferenceGroup("k", "what {answer_b} ?", (Response("yes", 1), Response("no", 2)))
    name, ballot = polling.ballot_for(group)
    assert ballot.request("what {answer_b} ?", ["yes", "no"]) == "Judge {this}.\n[Q] what {answer_b} ? [A] yes [B] no"
    assert name == "multimodal_rewardbench" and ballot.read("[[B]]", 2) == 1
    with pytest.raises(ConfigError, match="lack a place"):
        Polling(ballot="rating", words=str(words))
    with pytest.raises(ConfigError, match="need a ballot"):
        Polling(words=str(words))
    with pytest.raises(ConfigError, match="cannot be read"):
        Polling(ballot="pair", words=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no ballot"):
        Polling(ballot="duel")


def test_a_query_that_nobody_ranked_is_not_asked_about():
    group = PreferenceGroup("k", "?", (Response("a"), Response("b")))
    assert all(questions_of(group, ballot, Polling()) == [] for ballot in BALLOTS.values())


def test_letters_are_needed_where_all_responses_are_shown_at_once():
    """RewardBench 2 has queries of dozens of right answers, which are rated one by one."""
    group = PreferenceGroup("k", "?", tuple(Response(f"{n}", 1 if n == 0 else 2) for n in range(30)))
    asked = {name: ballot for name, ballot in BALLOTS.items() if ballot.form != "best"}
    numbers = {ballot.form: len(questions_of(group, ballot, Polling())) for ballot in asked.values()}
    assert numbers == {"pair": 58, "rating": 30}
    with pytest.raises(DataError, match="more responses than letters"):
        questions_of(group, BALLOTS["best"], Polling())


@pytest.mark.parametrize("words", ["Verdict:{}x", "Verdict{}x", "Verdict: A{}tied", "Rating: 7{}x", "Verdict: a{}b"])
def test_a_judge_that_says_no_more_than_spaces_holds_nobody_up(words):
    with little_work():
        for ballot in BALLOTS.values():
            with suppress(NoVerdict):
                ballot.read(words.format(" " * 50_000), 2)
