"""Who is asked about what: everything once, some twice, gold ones among them, and nobody the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.annotation.assignments import Plan, make_plan, shown_order
from mmrlhf.errors import ConfigError, DataError

KEYS = [f"q{number}" for number in range(30)]


def work_off(plan: Plan, turns: list[str]) -> dict[str, list[str]]:
    """Let annotators take turns until nobody is asked anything; key -> who was asked."""
    done: dict[str, list[str]] = {}
    names = sorted(set(turns))
    for name in turns + names * 200:
        key = plan.next_key(name, done, {})
        if key is not None:
            assert name not in done.get(key, [])
            done.setdefault(key, []).append(name)
    return done


@given(st.lists(st.sampled_from("abc"), max_size=40), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_query_is_asked_as_often_as_wanted(turns: list[str], doubly: float) -> None:
    plan = make_plan(KEYS, doubly=doubly, gold=["g1", "g2"], gold_every=4)
    done = work_off(plan, [*turns, "a", "b", "c"])
    assert {key: len(names) for key, names in done.items() if key in KEYS} == {key: plan.wanted(key) for key in KEYS}
    assert plan.left({key: set(names) for key, names in done.items()}) == 0
    assert all(names.count("a") <= 1 for names in done.values())


def test_gold_ones_come_one_in_so_many_and_to_everybody() -> None:
    plan = make_plan(KEYS, doubly=0, gold=["g1", "g2", "g3"], gold_every=4)
    done: dict[str, set[str]] = {}
    order = []
    for _ in range(16):
        key = plan.next_key("ann", done, {})
        assert key is not None
        order.append(key)
        done.setdefault(key, set()).add("ann")
    assert [place for place, key in enumerate(order, start=1) if key.startswith("g")] == [4, 8, 12]
    assert plan.next_key("bob", {**done, "q1": {"bob"}, "q2": {"bob"}, "q3": {"bob"}}, {}) in ("g1", "g2", "g3")


def test_what_somebody_has_before_them_is_not_given_to_another() -> None:
    plan = make_plan(KEYS, doubly=0)
    first = plan.keys[0]
    assert plan.next_key("bob", {}, {first: {"ann"}}) == plan.keys[1]
    assert plan.next_key("ann", {}, {first: {"ann"}}) == first


def test_a_list_keeps_its_order_and_a_limit_a_subset(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("q7\n\nq2\nq7\n")
    assert make_plan(KEYS, doubly=0, only=tmp_path / "keys.txt").keys == ("q7", "q2")
    assert make_plan(KEYS, doubly=0, limit=5).keys == make_plan(KEYS[::-1], doubly=0).keys[:5]
    twice = make_plan([f"q{number}" for number in range(2000)], doubly=0.1).twice
    assert 150 < len(twice) < 250
    for content, match in (
        ("q7\nother\n", "queries that are not there"),
        ("\n", "nobody has to be asked"),
        ("", "nobody"),
    ):
        (tmp_path / "keys.txt").write_text(content)
        with pytest.raises(DataError, match=match) as caught:
            make_plan(KEYS, doubly=0, only=tmp_path / "keys.txt")
    assert "stage=labelled ~stages.labelled.people.asked" in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        make_plan(KEYS, doubly=0, only=tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="not every query"):
        make_plan(KEYS, doubly=0, gold=["g"], gold_every=1)


def test_order_of_answers_depends_on_the_query_and_the_annotator_alone() -> None:
    hashes = ["a", "b", "c", "d"]
    assert shown_order("q", hashes) == shown_order("q", hashes)
    assert len({shown_order(f"q{number}", hashes) for number in range(60)}) > 15
    assert len({shown_order("q", hashes, name) for name in "abcdefghijkl"}) > 5
    assert sorted(shown_order("q", ["same", "same"])) == [0, 1]
