"""What an epoch is made of: every law holds for any sets, sizes and weights."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.fake_groups import FakeIndex

from mmrlhf.errors import ConfigError
from mmrlhf.feed.plan import Quotas, fill_places
from mmrlhf.feed.steps import RunPlan
from mmrlhf.feed.weights import Mixing

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
WEIGHTS = st.floats(0.1, 4.0)


def index_of(sizes) -> FakeIndex:
    sets = tuple(f"set{number}" for number, size in enumerate(sizes) for _ in range(size))
    return FakeIndex(len(sets), sets=sets)


def plan_of(index, mixing, rows=None) -> RunPlan:
    rows = np.arange(len(index)) if rows is None else rows
    return RunPlan(rows, "d", seed=1, groups_per_step=4, quotas=mixing.quotas(index, rows))


@given(sizes=SIZES, data=st.data(), epochs=st.integers(1, 5))
def test_no_query_comes_again_before_all_others_of_its_set_did(sizes, data, epochs):
    """After E epochs each query of a cell was seen floor or ceil of E x places / size times."""
    weights = {f"set{number}": data.draw(WEIGHTS) for number in range(len(sizes))}
    index = index_of(sizes)
    plan = plan_of(index, Mixing(weights=weights))
    assert plan.quotas is not None
    seen = Counter(int(row) for epoch in range(epochs) for row in plan.order(epoch))
    for number, size in enumerate(sizes):
        places = int(plan.quotas.places[list(plan.quotas.names).index(f"set{number}")])
        assert places == pytest.approx(weights[f"set{number}"] * size, abs=1) and places >= 1
        counts = [seen[row] for row in range(len(index)) if index.sets[row] == f"set{number}"]
        assert sum(counts) == epochs * places
        assert {epochs * places // size, -(-epochs * places // size)} >= set(counts)


@given(sizes=SIZES, data=st.data())
def test_every_epoch_is_as_long_as_the_weights_say(sizes, data):
    weights = {f"set{number}": data.draw(WEIGHTS) for number in range(len(sizes))}
    plan = plan_of(index_of(sizes), Mixing(weights=weights))
    wanted = sum(weights[f"set{number}"] * size for number, size in enumerate(sizes))
    assert plan.groups_per_epoch == pytest.approx(wanted, abs=len(sizes))
    assert {len(plan.order(epoch)) for epoch in range(4)} == {plan.groups_per_epoch}


def test_weights_by_hand():
    """Sets of 4 and 6: once in two epochs and twice in each."""
    plan = plan_of(index_of([4, 6]), Mixing(weights={"set0": 0.5, "set1": 2}))
    epochs = [Counter(plan.order(epoch).tolist()) for epoch in range(2)]
    assert plan.groups_per_epoch == 14
    assert all(counts[row] == 2 for counts in epochs for row in range(4, 10))
    assert sorted(row for counts in epochs for row in counts if row < 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("strength", "rare"), [(0.0, 10), (1.0, 15), (0.5, 12)])
def test_balance_by_hand(strength, rare):
    """30 queries, 10 of them rare: as they are; 15 to 15; or by the roots 3.16 : 4.47, which gives 12.4 of 30."""
    index = FakeIndex(30)
    plan = plan_of(index, Mixing(balance=["category"], strength=strength))
    drawn = index.column("category")[plan.order(0)]
    assert (len(drawn), int((drawn == "rare").sum())) == (30, rare)


def test_balance_of_sets_keeps_the_weights_inside_a_category():
    """Categories get equal places; within each, the sets share as their weights say."""
    index = index_of([12, 12])
    quotas = Mixing(weights={"set1": 3}, balance=["category"]).quotas(index, np.arange(24))
    assert quotas is not None
    places = dict(zip(quotas.names, quotas.places.tolist(), strict=True))
    assert places == {"set0 common": 6, "set0 rare": 6, "set1 common": 18, "set1 rare": 18}


def test_without_weights_every_query_comes_once():
    assert Mixing().quotas(FakeIndex(5), np.arange(5)) is None


@given(seed=st.integers(0, 1000))
def test_equal_places_draw_like_no_quotas(seed):
    """A cell with as many places as rows is one permutation of them, in each epoch another."""
    quotas = Quotas(np.zeros(20, np.int64), np.array([20]), ("all",))
    first, second = (fill_places(np.arange(20), quotas, digest="d", seed=seed, epoch=epoch) for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()


def test_a_window_keeps_the_drawn_rows_of_its_shards_together():
    index = FakeIndex(20)
    rows = np.arange(20)
    quotas = Mixing(balance=["category"]).quotas(index, rows)
    plan = RunPlan(rows, "d", 1, 4, shards=index.column("shard"), window=1, quotas=quotas)
    shards = index.column("shard")[plan.order(0)].tolist()
    assert len(list(dict.fromkeys(shards))) == sum(a != b for a, b in zip(shards, [None, *shards], strict=False))


@pytest.mark.parametrize(
    "settings", [{"weights": {"a": 0}}, {"balance": ["size"]}, {"strength": 2}, {"shuffle_window": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Mixing(**settings)


def test_a_weight_for_no_set_is_refused():
    with pytest.raises(ConfigError, match="no such shard set"):
        Mixing(weights={"set9": 1}).quotas(index_of([2, 2]), np.arange(4))
