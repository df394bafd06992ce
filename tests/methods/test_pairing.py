"""Which pairs a scheme gives: ties, ranking by reward, filtering by margin; margins of the policy's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.length_normalised import SimPO
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme, weighted_pairs
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import EncodedGroup, PairIndex
from mmrlhf.tokens.packing import pack_groups


def rewarded(number: int, ranks: tuple[float, ...], rewards: tuple[float, ...]) -> EncodedGroup:
    group = make_group(number, ranks)
    return replace(group, columns={**group.columns, "reward": torch.tensor(rewards)})


def found(pairs: PairIndex) -> dict[tuple[int, int], float]:
    rows = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.weight.tolist(), strict=True)
    return {(chosen, rejected): weight for chosen, rejected, weight in rows}


def select(*groups: EncodedGroup, **scheme: object) -> dict[tuple[int, int], float]:
    return found(weighted_pairs(pack_groups(groups), PairScheme(**scheme)))  # pyright: ignore


TIED = rewarded(1, (1, 2, 2), (0.0, -1.0, 3.0))


def test_ties_are_dropped_even_or_decided_by_reward() -> None:
    assert select(TIED) == {(0, 1): 1, (0, 2): 1}
    assert select(TIED, ties="even") == {(0, 1): 1, (0, 2): 1, (1, 2): 0.5, (2, 1): 0.5}
    assert select(TIED, ties="reward") == {(0, 1): 1, (0, 2): 1, (2, 1): 1}
    assert select(TIED, ties="reward", scheme="adjacent") == {(0, 2): 1, (2, 1): 1}
    assert select(TIED, ties="reward", scheme="hardest") == {(0, 1): 1}
    assert select(rewarded(1, (1, 1), (2.0, 2.0)), ties="reward") == {}, "equal rewards decide nothing"


def test_drift_counts_each_compared_response_once() -> None:
    """A query of four and a query of two weigh four to two, not six pairs to one; what no pair has is left out."""
    groups = [make_group(1, (1, 2, 3, 4)), make_group(2, (1, 2)), make_group(3, (1, 2), weight=0.0)]
    batch = pack_groups(groups)
    ratio = (ToyModel()(batch).logprob - batch.columns["reference_logprob"]).tolist()
    for scheme, compared in (("all", [0, 1, 2, 3, 4, 5]), ("hardest", [0, 3, 4, 5])):
        module = PreferenceModule(ToyModel(), DPO(), PairScheme(scheme), OptimSettings(), total_steps=1)
        record = StepRecord()
        module.loss_sums(batch, module.count(batch), record)
        expected = sum(ratio[row] for row in compared) / len(compared)
        assert record.reduce(lambda tensor, _: tensor)["kl_estimate"] == pytest.approx(expected, rel=1e-5)


def test_even_ties_cost_what_the_cross_entropy_against_one_half_does() -> None:
    group = make_group(3, (1, 1))
    batch = pack_groups([group])
    module = PreferenceModule(ToyModel(), DPO(), PairScheme(ties="even"), OptimSettings(), total_steps=1)
    counts = module.count(batch)
    ratio = ToyModel()(batch).logprob - batch.columns["reference_logprob"]
    u = 0.1 * (ratio[0] - ratio[1])
    softplus = torch.nn.functional.softplus
    found_loss = module.loss_sums(batch, counts, StepRecord())["preference"] / counts.divisors["preference"]
    torch.testing.assert_close(found_loss, (softplus(u) + softplus(-u)) / 2)


@given(ranks=st.lists(st.integers(1, 3), min_size=2, max_size=5), ties=st.sampled_from(["drop", "even", "reward"]))
def test_pairs_of_a_query_share_a_weight_of_one(ranks: list[int], ties: str) -> None:
    weights = select(make_group(1, tuple(map(float, ranks))), weighting="query", ties=ties)
    assert not weights or sum(weights.values()) == pytest.approx(1.0)


def alike(group: EncodedGroup, *places: int) -> EncodedGroup:
    """The group with responses that a cut has made the same as the first of them."""
    first = replace(group.branches[places[0]], truncated=3)
    return replace(group, branches=tuple(first if i in places else b for i, b in enumerate(group.branches)))


@pytest.mark.parametrize("scheme", ["all", "hardest", "adjacent", "best_vs_rest"])
def test_pairs_that_a_cut_made_equal_are_none(scheme: str) -> None:
    """Best and worst of three read the same: the others are compared, and weigh what the query weighs."""
    group = alike(rewarded(1, (1, 2, 3), (0.0, 1.0, 2.0)), 0, 2)
    whole, chosen = select(rewarded(1, (1, 2, 3), (0.0, 1.0, 2.0)), scheme="all"), select(group, scheme=scheme)
    assert (0, 2) in whole and chosen and (0, 2) not in chosen
    assert set(chosen) <= set(whole)
    assert sum(select(group, scheme=scheme, weighting="query").values()) == pytest.approx(1)
    assert (2, 0) not in select(group, rank_by="reward")
    batch = pack_groups([rewarded(2, (1, 2, 3), (0.0, 1.0, 2.0)), group])
    assert batch.equal_pairs == 1 and batch.content.tolist() == [0, 1, 2, 3, 4, 3]


def test_a_query_that_is_all_alike_has_no_pair_and_ties_of_one_text_are_no_ties() -> None:
    assert not select(alike(rewarded(1, (1, 2, 2), (0.0, 1.0, 2.0)), 0, 1, 2), ties="even")
    assert (1, 2) not in select(alike(TIED, 1, 2), ties="even") and (1, 2) in select(TIED, ties="even")


def test_equal_tokens_without_a_cut_stay_apart() -> None:
    """Texts that differ and are tokenized alike are the data's; only what was cut here is left out here."""
    group = TIED
    same = replace(group, branches=tuple(group.branches[0] for _ in group.branches))
    assert pack_groups([same]).equal_pairs == 0


def test_rewards_rank_what_nobody_ranked() -> None:
    nan = float("nan")
    group = replace(rewarded(1, (nan, nan, nan), (0.5, 2.0, -1.0)), pairs=())
    assert set(select(group, rank_by="reward")) == {(1, 0), (1, 2), (0, 2)}
    assert set(select(group, rank_by="reward", scheme="hardest")) == {(1, 2)}
    assert set(select(group, rank_by="reward", min_margin=1.5)) == {(1, 2)}


def test_a_filter_comes_before_the_choice() -> None:
    """The hardest pair has a negative margin, so the hardest of the others is taken."""
    group = rewarded(1, (1, 2, 3), (0.0, -1.0, 5.0))
    assert set(select(group, scheme="hardest")) == {(0, 2)}
    assert set(select(group, scheme="hardest", min_margin=0.0)) == {(0, 1)}
    assert set(select(group, min_margin=1.0)) == set(), "a margin at the threshold does not enter"


def test_rewards_are_asked_for_where_they_choose() -> None:
    group = make_group(1)
    bare = replace(group, columns={name: column for name, column in group.columns.items() if name != "reward"})
    for scheme in (PairScheme(rank_by="reward"), PairScheme(ties="reward"), PairScheme(min_margin=0.0)):
        assert scheme.needs_margin
        with pytest.raises(ConfigError, match="without rewards"):
            weighted_pairs(pack_groups([bare]), scheme)
    assert not PairScheme().needs_margin


@pytest.mark.parametrize("wrong", [{"scheme": "best"}, {"ties": "keep"}, {"rank_by": "length"}, {"weighting": "none"}])
def test_unknown_choices_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PairScheme(**wrong)


def test_an_implicit_margin_is_the_policys_own() -> None:
    """The margin is beta * z without gradient, whatever the rewards say, and needs none."""
    group = make_group(2, (1, 2))
    bare = replace(group, columns={name: column for name, column in group.columns.items() if name != "reward"})
    objective = MMDPO(w=1.0, k=2.0, negative_margin="signed")
    module = PreferenceModule(
        ToyModel(), objective, PairScheme(), OptimSettings(), total_steps=1, margin_from="implicit"
    )
    batch = pack_groups([bare])
    record = StepRecord()
    module.loss_sums(batch, module.count(batch), record)["preference"].backward()
    ratio = ToyModel()(batch).logprob - batch.columns["reference_logprob"]
    seen = record.reduce(lambda tensor, _: tensor)
    assert seen["margin"] == pytest.approx(0.1 * float((ratio[0] - ratio[1]).detach()), rel=1e-4)


def test_an_objective_without_reference_has_no_implicit_margins_and_needs_none() -> None:
    batch = pack_groups([make_group(1)])
    module = PreferenceModule(
        ToyModel(), SimPO(), PairScheme(), OptimSettings(), total_steps=1, reference="none", margin_from="implicit"
    )
    record = StepRecord()
    assert torch.isfinite(module.loss_sums(batch, module.count(batch), record)["preference"])
    assert not {"margin", "kl_estimate"} & record.reduce(lambda tensor, _: tensor).keys()
