from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.fake_groups import make_dataset

from mmrlhf.errors import DataError
from mmrlhf.feed.steps import HeldOutSteps, RunPlan, TrainSteps
from mmrlhf.feed.weights import Mixing
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.tensors import StepBatch


def make_steps(
    rank=0, world_size=1, *, groups=10, per_step=4, token_budget=16, tables=(), mixing=None, seed=3, **encoder
) -> TrainSteps:
    dataset, rows = make_dataset(groups, *tables, **encoder), np.arange(groups)
    quotas = (mixing or Mixing()).quotas(dataset.index, rows)
    plan = RunPlan(rows, "digest", seed=seed, groups_per_step=per_step, quotas=quotas)
    return TrainSteps(dataset, plan, token_budget=token_budget, rank=rank, world_size=world_size)


def weighted(steps: list[StepBatch]) -> Counter[str]:
    """Weight that each key gets over the ranks' shares."""
    total: Counter[str] = Counter()
    for step in steps:
        for batch in step.micro_batches:
            for key, weight in zip(batch.keys, batch.group_weight.tolist(), strict=True):
                total[key] += weight
    return +total


@settings(deadline=None, max_examples=30)
@given(
    groups=st.integers(1, 20), per_step=st.integers(1, 9), token_budget=st.integers(1, 40), world_size=st.integers(1, 5)
)
def test_ranks_share_each_step_exactly(groups, per_step, token_budget, world_size):
    """Whatever the ranks and budget, a step's groups weigh 1 in total and ranks have equally many micro-batches."""
    options = {"groups": groups, "per_step": per_step, "token_budget": token_budget}
    alone = make_steps(**options, world_size=1)
    ranks = [make_steps(rank, world_size, **options) for rank in range(world_size)]
    for number in range(2 * -(-groups // per_step)):
        shares = [steps[number] for steps in ranks]
        assert weighted(shares) == weighted([alone[number]])
        assert len({len(share.micro_batches) for share in shares}) == 1
        assert {share.num_groups for share in shares} == {sum(weighted(shares).values())}
        assert all((share.epoch, share.step) == (number // -(-groups // per_step), number) for share in shares)


@settings(deadline=None, max_examples=30)
@given(
    data=st.data(), mixing=st.sampled_from([None, Mixing(weights={"": 1.5}), Mixing(balance=["category"])]),
    groups=st.integers(1, 20), per_step=st.integers(1, 9),
)  # fmt: skip
def test_steps_are_the_same_whatever_runs_them(data, mixing, groups, per_step):
    """Each step is made anew by a run of other ranks, budget and starting point; groups and weights stay."""
    options = {"groups": groups, "per_step": per_step, "mixing": mixing}
    alone = make_steps(**options, token_budget=30)
    for number in data.draw(st.lists(st.integers(0, 12), min_size=3, max_size=6)):
        world_size, budget = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 60))
        shares = [
            make_steps(rank, world_size, **options, token_budget=budget)[number] for rank in range(world_size)
        ]  # fmt: skip
        assert weighted(shares) == weighted([alone[number]])
        assert {(s.epoch, s.step, s.num_groups) for s in shares} == {
            (alone[number].epoch, number, alone[number].num_groups)
        }


@given(
    short=st.frozensets(st.integers(0, 11).map("g{}".format)), token_budget=st.integers(1, 40),
    per_step=st.integers(1, 9), world_size=st.integers(1, 3),
)  # fmt: skip
def test_the_budget_holds_whatever_the_estimates(short, token_budget, per_step, world_size):
    """Only a single group may be above it; what a step consists of does not change."""
    options = {"groups": 12, "per_step": per_step, "token_budget": token_budget}
    for number in range(-(-12 // per_step)):
        shares = [make_steps(rank, world_size, **options, short_keys=short)[number] for rank in range(world_size)]
        batches = [batch for share in shares for batch in share.micro_batches]
        assert all(len(batch.keys) == 1 or batch.num_tokens <= token_budget for batch in batches)
        assert weighted(shares) == weighted([make_steps(**options)[number]])


def test_two_epochs_see_every_group_once_each_and_in_another_order():
    steps = [make_steps()[number] for number in range(6)]
    everyone = Counter({f"g{i}": 1.0 for i in range(10)})
    assert weighted(steps[:3]) == weighted(steps[3:]) == everyone
    assert steps[0].micro_batches[0].keys != steps[3].micro_batches[0].keys


def test_held_out_steps_keep_the_given_order_at_weight_one():
    rows = np.array([7, 2, 5, 1, 9])
    steps = HeldOutSteps(make_dataset(10), rows, groups_per_step=2, token_budget=100, rank=0, world_size=1)
    made = [steps[number] for number in range(3)]
    assert [set(step.micro_batches[0].keys) for step in made] == [{"g7", "g2"}, {"g5", "g1"}, {"g9"}]
    assert [step.num_groups for step in made] == [2, 2, 1]
    assert weighted(made) == Counter(f"g{row}" for row in rows)


def shown(step: StepBatch) -> dict[tuple[str, int], tuple[str, ...]]:
    """(key, epoch) -> the hashes of a group's responses, in the order of the row."""
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for batch in step.micro_batches:
        for name, group in zip(batch.response_hashes, batch.group_of_response.tolist(), strict=True):
            at = batch.keys[group], step.epoch
            found[at] = (*found.get(at, ()), name)
    return found


def test_responses_in_turn_stand_in_an_order_of_the_step():
    """Another in other epochs and by another seed, the same whatever runs them; held-out ones in one, apart in none."""
    options = {"groups": 8, "per_step": 4}

    def orders(*runs):
        return {at: own for steps in runs for number in range(12) for at, own in shown(steps[number]).items()}

    alone = orders(make_steps(**options, in_turn=True, token_budget=30))
    assert alone == orders(*(make_steps(rank, 2, **options, in_turn=True, token_budget=9) for rank in range(2)))
    keys = {key for key, _ in alone}
    assert len(keys) == 8 and {len({alone[key, epoch] for epoch in range(6)}) for key in keys} == {2}
    other = orders(make_steps(**options, in_turn=True, token_budget=30, seed=4))
    assert other.keys() == alone.keys() and other != alone
    apart = orders(make_steps(**options, token_budget=30))
    assert {len({apart[key, epoch] for epoch in range(6)}) for key in keys} == {1}
    dataset, rows = make_dataset(8, in_turn=True), np.arange(8)
    ways = [
        HeldOutSteps(dataset, rows[::way], groups_per_step=size, token_budget=30, rank=0, world_size=1)
        for way, size in ((1, 4), (-1, 3))
    ]
    heldout = [{at: own for step in range(2) for at, own in shown(steps[step]).items()} for steps in ways]
    both = heldout[0].keys() & heldout[1].keys()
    assert len(both) >= 6 and all(heldout[0][at] == heldout[1][at] for at in both)


def test_damage_is_replaced_by_the_next_row_at_weight_zero(caplog):
    """g4 is damaged: whichever rank meets it gets g5 at weight 0, everyone else's share stays as it was."""
    steps = [make_steps(damaged=frozenset({"g4"}))[number] for number in range(3)]
    assert [key for step in steps for key in step.quarantined] == ["g4"]
    assert weighted(steps) == Counter({f"g{i}": 1.0 for i in range(10) if i != 4})
    fillers = [
        key
        for step in steps
        if step.quarantined
        for batch in step.micro_batches
        for key, weight in zip(batch.keys, batch.group_weight.tolist(), strict=True)
        if weight == 0
    ]
    assert "g5" in fillers and "g4" not in fillers
    assert "g4" in caplog.text


def test_the_last_row_s_neighbour_is_the_first():
    steps = make_steps(groups=3, per_step=3, damaged=frozenset({"g2"}))
    assert sorted(key for batch in steps[0].micro_batches for key in batch.keys) == ["g0", "g0", "g1"]


def test_a_run_of_damage_stops_the_run():
    with pytest.raises(DataError, match="in a row"):
        make_steps(groups=30, damaged=frozenset(f"g{i}" for i in range(30)))[0]


def test_a_programming_error_is_never_swallowed():
    with pytest.raises(NameError):
        [make_steps(broken=frozenset({"g4"}))[number] for number in range(3)]


def test_a_missing_side_car_value_is_not_taken_for_damage(tmp_path):
    with SideCarWriter(tmp_path, columns=["reward"], fingerprint={}):
        pass
    with pytest.raises(DataError, match="no values for group"):
        make_steps(tables=[SideCar.load(tmp_path)])[0]
