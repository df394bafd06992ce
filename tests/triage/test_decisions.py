"""Who is asked and what the model labels: everybody once, safety to people, the audit apart, the budget kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.triage.budget import Budget
from mmrlhf.triage.decisions import Beyond, Decision, Order, decide, read_decisions, write_decisions
from mmrlhf.triage.model_proposals import Proposal, fitted_temperature

KEYS = [f"q{number}" for number in range(30)]
Sets = tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]


def proposal(key: str, *rewards: float) -> Proposal:
    return Proposal(key, "long", tuple("abcdef"[: len(rewards)]), rewards)


def subsets() -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(KEYS))


@given(
    st.tuples(subsets(), subsets(), subsets(), subsets()),
    st.none() | st.floats(0, 0.5),
    st.none() | st.integers(0, 35),
    st.sampled_from(["unsure", "random", "surest"]),
    st.sampled_from(["leave_out", "model"]),
)
def test_every_query_has_one_fate(
    sets: Sets, threshold: float | None, affordable: int | None, order: Order, beyond: Beyond
) -> None:
    audit, known, safe, silent = sets
    audit -= safe
    proposals = {key: proposal(key, number / 7, 1.0) for number, key in enumerate(KEYS) if key not in silent}
    unsure = {key: each.uncertainty(1.0) for key, each in proposals.items()}
    found = decide(
        KEYS, proposals, unsure, audit=audit, known=known, always=safe, threshold=threshold, affordable=affordable,
        order=order, beyond=beyond,
    )  # fmt: skip
    assert sorted(each.key for each in found) == sorted(KEYS)
    fates = Counter(each.fate for each in found)
    assert affordable is None or fates["asked"] <= affordable
    for each in found:
        by_model = each.fate in ("automatic", "uncertified")
        assert not by_model or (each.key not in safe | audit | known and each.ranks == proposals[each.key].ranks)
        assert (each.fate == "audit") == (each.key in audit)
        assert each.fate != "automatic" or (threshold is not None and unsure[each.key] <= threshold)
        assert each.fate != "uncertified" or beyond == "model"
    asked = [each for each in found if each.fate == "asked"]
    assert [each.key in safe for each in asked] == sorted((each.key in safe for each in asked), reverse=True)
    rest = [each.uncertainty for each in asked if each.key not in safe and each.uncertainty is not None]
    if order != "random":
        assert rest == sorted(rest, reverse=order == "unsure")
    if any(each.fate == "left out" for each in found):
        assert fates["asked"] == affordable, "nothing is left out while there is money"


def test_the_surest_is_the_one_with_the_largest_distances() -> None:
    sure, unsure, tied = proposal("a", 0.0, 3.0), proposal("b", 0.0, 0.1), proposal("c", 1.0, 1.0)
    assert sure.uncertainty(1.0) < unsure.uncertainty(1.0) < tied.uncertainty(1.0) == 0.5
    assert sure.ranks == (2, 1) and tied.ranks == (1, 1)
    assert sure.disagreement((1, 2)) == 1.0 and sure.disagreement((2, 1)) == 0.0 and sure.disagreement((1, 1)) == 0.5
    assert sure.disagreement((1, None)) is None


def test_the_temperature_is_that_of_people_who_err_as_often() -> None:
    """Three of four pairs with a distance of 1 are ordered as proposed: sigmoid(1 / T) = 3 / 4."""
    asked = [proposal(str(number), 1.0, 0.0) for number in range(40)]
    people = [(2, 1) if number % 4 == 0 else (1, 2) for number in range(40)]
    temperature = fitted_temperature(asked, people)
    assert temperature == pytest.approx(1 / 1.0986, rel=1e-3)
    assert asked[0].uncertainty(temperature) == pytest.approx(0.25, abs=1e-3)
    assert fitted_temperature(asked, [(1, 1)] * 40) == 1.0, "ties say nothing; a scale is left"


def test_budgets_in_queries_minutes_and_money() -> None:
    assert Budget().affordable(None) is None
    assert Budget(queries=7).affordable(None) == 7
    assert Budget(minutes=10).affordable(60.0) == 10
    assert Budget(minutes=10, seconds=30).affordable(60.0) == 20, "what the user says counts"
    assert Budget(money=50, per_hour=25).affordable(120.0) == 60
    assert Budget(queries=5, minutes=10, money=1, per_hour=60).affordable(60.0) == 1
    # a budget that pays for a whole number in decimals
    assert Budget(minutes=1.1).affordable(1.1) == 60
    assert Budget(money=2.2, per_hour=6).affordable(1.1) == 1200
    with pytest.raises(ConfigError, match="how long"):
        Budget(minutes=10).affordable(None)
    with pytest.raises(ConfigError, match="an hour costs"):
        Budget(money=10)


def test_decisions_come_back_as_they_were(tmp_path: Path) -> None:
    wrote = [Decision("a", "asked", 0.5, (1, 2), ("x", "y")), Decision("b", "left out", reason="beyond the budget")]
    write_decisions(tmp_path, wrote)
    assert list(read_decisions(tmp_path)) == wrote
    with pytest.raises(DataError, match="stage=triage"):
        list(read_decisions(tmp_path / "nowhere"))
