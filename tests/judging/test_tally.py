"""Laws of a tally, whatever a judge says: turned queries give turned margins; what is missing is no score."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.judging.ballots import BALLOTS
from mmrlhf.judging.polling import Polling, Question, questions_of
from mmrlhf.judging.tally import Tally, Vote
from mmrlhf.types import PreferenceGroup, Response

FORMS = ("pair", "best", "rating")


@st.composite
def polls(draw: st.DrawFn) -> tuple[PreferenceGroup, str, dict[Question, list[Vote]]]:
    """A ranked query and votes on all its questions, some of which are none."""
    ranks = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4).filter(lambda own: len(set(own)) > 1))
    group = PreferenceGroup("q", "?", tuple(Response(f"answer {n}", rank) for n, rank in enumerate(ranks)))
    form = draw(st.sampled_from(FORMS))
    votes = {}
    for question in questions_of(group, BALLOTS[form], Polling()):
        most = 9 if form == "rating" else len(question.shown) - 1
        said = draw(st.lists(st.none() | st.integers(0, most), min_size=1, max_size=3))
        votes[question] = [Vote(each, "" if each is not None else "no verdict") for each in said]
    return group, form, votes


def tallied(group: PreferenceGroup, form: str, votes: dict[Question, list[Vote]]) -> Tally:
    tally = Tally()
    tally.add(group, form, BALLOTS[form], votes)
    return tally


@given(polls())
def test_the_other_side_s_margin_is_the_negative(poll):
    """Ranks turned around, with the same votes: every pair is the other way round, and so is its margin."""
    group, form, votes = poll
    turned = tuple(replace(response, rank=4 - (response.rank or 0)) for response in group.responses)
    margins = tallied(group, form, votes).margins.get("q", {})
    others = tallied(replace(group, responses=turned), form, votes).margins.get("q", {})
    assert {pair[::-1]: -margin for pair, margin in margins.items()} == {
        pair: margin if margin else -0.0 for pair, margin in others.items()
    }
    assert all(-1 <= margin <= 1 for margin in margins.values()) or form == "rating"


@given(polls())
def test_every_pair_has_a_number_or_is_counted(poll):
    group, form, votes = poll
    tally, pairs = tallied(group, form, votes), group.ranked_pairs()
    numbers = len(tally.margins.get("q", {}))
    assert numbers + tally.excluded_pairs == len(pairs) and tally.excluded == (numbers < len(pairs))
    none = sum(vote.chosen is None for own in votes.values() for vote in own)
    assert sum(tally.no_verdict.values()) == none and tally.verdicts == sum(map(len, votes.values()))
    answered = {question for question, own in votes.items() if any(vote.chosen is not None for vote in own)}
    for pair in tally.margins.get("q", {}):
        needed = {question for question in votes if form == "best" or set(question.shown) <= set(pair)}
        assert needed <= answered
    assert ("q" in tally.scores) == (form != "pair" and answered == set(votes))


@given(polls())
def test_places_and_agreement_are_shares(poll):
    group, form, votes = poll
    tally = tallied(group, form, votes)
    assert all(abs(sum(shares) - 1) < 1e-9 for shares in tally.places.values())
    assert form != "rating" or (tally.places == {} and tally.consistent is None)
    assert tally.consistent is None or 0 <= tally.consistent.mean <= 1


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=6, max_size=6), st.permutations(range(6)))
def test_responses_with_the_same_share_tie(said, order):
    """The second response gets in another question what the first gets in one: the same share, in another order."""
    questions = [Question(shown) for shown in itertools.permutations(range(3))]
    group = PreferenceGroup("q", "?", tuple(Response(f"answer {n}", n + 1) for n in range(3)))

    def share(place: int, lists: list[list[int]]) -> float:
        votes = {
            question: [Vote(question.shown.index(response)) for response in own]
            for question, own in zip(questions, lists, strict=True)
        }
        return tallied(group, "best", votes).scores["q"][place]

    turned = [[{0: 1, 1: 0, 2: 2}[response] for response in said[place]] for place in order]
    assert share(0, said) == share(1, turned)
