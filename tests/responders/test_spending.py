"""Money: what is spent never exceeds the limit, whatever answers cost and in whatever order they come."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.endpoints.completions import TOO_SLOW, Answer, Use
from mmrlhf.endpoints.prices import Prices
from mmrlhf.errors import ConfigError
from mmrlhf.responders.spending import AskingStopped, Purse, check_limit, cost_of, require_all
from mmrlhf.summaries.responses import AskingEstimate

PRICES = Prices(2.0, 8.0)
LONGEST = 100
answers = st.builds(
    lambda read, written, failed: Answer("", "HTTP 503" if failed else "", failed, Use("m", "stop", read, written)),
    st.integers(0, 50), st.integers(0, LONGEST), st.booleans(),
)  # fmt: skip


def estimate(cost: float | None) -> AskingEstimate:
    return AskingEstimate(10, 2, 80, 40, 400, cost, cost and 3 * cost, 5.0)


def test_what_an_answer_costs() -> None:
    """By hand: 10 tokens read at 2 and 5 written at 8 for a million."""
    answer = Answer("x" * 7, use=Use("m", "stop", 10, 5))
    assert cost_of(PRICES, answer) == pytest.approx(60e-6) and cost_of(None, answer) == 0
    assert cost_of(PRICES, Answer("x" * 7), expected=30) == pytest.approx(76e-6), (
        "uncounted: expected, and 3.5 signs each"
    )


@given(st.lists(answers, max_size=30), st.floats(0, 0.01), st.integers(1, 5))
def test_the_limit_is_never_exceeded(given: list[Answer], limit: float, together: int) -> None:
    above, under_way = Purse(limit), []
    purse = Purse(None, above=above)
    for answer in given:
        reserved = purse.reserve(PRICES, 50, LONGEST)
        if reserved is None:
            break
        under_way.append((reserved, answer))
        if len(under_way) == together:
            oldest, said = under_way.pop(0)
            purse.settle(PRICES, oldest, 50, said)
        assert above.spent + above.reserved <= limit + 1e-12
    for reserved, answer in under_way:
        purse.settle(PRICES, reserved, 50, answer)
    assert above.spent <= limit + 1e-12 and above.reserved == pytest.approx(0.0, abs=1e-12)


def test_what_requests_read_beyond_what_was_expected_is_learned() -> None:
    purse = Purse(1.0)
    first = purse.reserve(PRICES, 10, 0)
    assert first == pytest.approx(20e-6)
    purse.settle(PRICES, first, 10, Answer("", use=Use("m", "stop", 40, 0)))
    assert purse.spent == pytest.approx(80e-6) and purse.reserve(PRICES, 10, 0) == pytest.approx(80e-6)


def test_a_try_that_was_too_slow_has_been_worked_on() -> None:
    purse = Purse(1.0)
    reserved = purse.reserve(PRICES, 50, LONGEST)
    assert reserved is not None
    purse.settle(PRICES, reserved, 50, Answer("", "", True, Use(tries=(TOO_SLOW, "HTTP 503", TOO_SLOW))))
    assert purse.spent == pytest.approx(2 * reserved)


def test_nothing_is_taken_from_a_purse_that_is_closed_or_below_one_that_is_empty() -> None:
    above = Purse(100e-6)
    one, two = Purse(above=above), Purse(1e-9, above=above)
    assert two.reserve(PRICES, 50, 0) is None and above.reserved == 0, (
        "the smaller limit counts, and nothing stays taken"
    )
    taken = one.reserve(PRICES, 50, 0)
    assert taken == pytest.approx(100e-6) and one.reserve(PRICES, 1, 0) is None
    assert two.over and not one.over, "what is under way may cost less"
    one.settle(PRICES, taken, 50, Answer("", use=Use("m", "stop", 50, 0)))
    assert one.reserve(PRICES, 1, 0) is None and one.over
    with pytest.raises(ConfigError, match=r"limit on the cost has stopped[\s\S]*3 of 9 answers[\s\S]*is kept"):
        require_all(one, "max_cost", 3, 9)
    above.close()
    free = Purse(above=above)
    assert free.reserve(None, 1, 1) is None
    other = Purse(above=Purse())
    with pytest.raises(AskingStopped):
        require_all(other, "max_cost", 3, 9)
    require_all(other, "max_cost", 9, 9)


def test_an_estimate_above_the_limit_is_refused_and_a_limit_needs_prices() -> None:
    check_limit(estimate(2.0), PRICES, 2.5, "max_cost")
    check_limit(estimate(None), None, None, "max_cost")
    with pytest.raises(ConfigError, match=r"cost more[\s\S]*8 answers, 2 are there[\s\S]*about 2.00, at most 6.00"):
        check_limit(estimate(2.0), PRICES, 2.5, "max_cost", spent=1.0)
    with pytest.raises(ConfigError, match="needs prices"):
        check_limit(estimate(None), None, 1.0, "max_cost")


def test_whoever_has_no_money_waits_for_what_others_give_back() -> None:
    above = Purse(100e-6)
    one, two = Purse(above=above), Purse(above=above)
    taken = one.reserve(PRICES, 50, 0)
    assert taken is not None and two.reserve(PRICES, 40, 0) is None and not two.over
    waiting = threading.Thread(target=two.wait)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    one.settle(PRICES, taken, 50, Answer("", use=Use("m", "stop", 5, 0)))
    waiting.join(10)
    assert not waiting.is_alive() and two.reserve(PRICES, 40, 0) == pytest.approx(80e-6)
    waiting = threading.Thread(target=one.wait)
    waiting.start()
    above.close()
    waiting.join(10)
    assert not waiting.is_alive() and one.over and two.over
    Purse(above=Purse()).wait()


def test_what_is_given_back_unused_ends_the_waiting() -> None:
    """A purse below may lack the money that the one above has just set aside for it."""
    above = Purse(100e-6)
    assert above._take(50e-6)
    waiting = threading.Thread(target=above.wait, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    above._give_back(50e-6)
    waiting.join(10)
    assert not waiting.is_alive()
