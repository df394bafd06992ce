"""Several critiques of a response become one verdict."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.inference.passes import GroupScores
from mmrlhf.inference.settings import Combine
from mmrlhf.inference.verdicts import combine_rewards, verdicts_on
from mmrlhf.types import PreferenceGroup, Response

REWARD = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, -4.0]])
LIKELIEST = torch.tensor([1, 0, 0])


def test_mean_and_best_by_hand() -> None:
    assert combine_rewards(REWARD, LIKELIEST, "mean").tolist() == [2.0, 2.0, -2.0]
    assert combine_rewards(REWARD, LIKELIEST, "best").tolist() == [3.0, 2.0, 0.0]


def test_votes_by_hand() -> None:
    """Response 0 beats 1 in two of four comparisons and 2 in all: (1/2 + 1) / 2."""
    assert combine_rewards(REWARD, LIKELIEST, "vote").tolist() == [0.75, 0.75, 0.0]
    assert combine_rewards(REWARD[:1], LIKELIEST[:1], "vote").tolist() == [0.5]


def test_equal_shares_of_votes_are_equal_numbers() -> None:
    """1/9 + 8/9 and 4/9 + 5/9 are as much, and so are the shares of all who win as many comparisons."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        reward = torch.randint(0, 4, (5, 3), generator=generator)
        others = [[each for place, own in enumerate(reward.tolist()) if place != own_place for each in own]
                  for own_place in range(5)]  # fmt: skip
        points = [sum((a > b) + (a >= b) for a in own for b in those)
                  for own, those in zip(reward.tolist(), others, strict=True)]  # fmt: skip
        votes = combine_rewards(reward.float(), torch.zeros(5, dtype=torch.int64), "vote").tolist()
        assert len(set(votes)) == len(set(points))


@given(
    values=st.integers(2, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=2, max_size=5)
    )
)
def test_votes_are_shares_that_sum_to_half_the_responses(values: list[list[int]]) -> None:
    """Every comparison gives one point, so K responses share K / 2; a shift of all rewards changes nothing."""
    reward = torch.tensor(values, dtype=torch.float32)
    votes = combine_rewards(reward, torch.zeros(len(reward), dtype=torch.int64), "vote")
    assert float(votes.sum()) == pytest.approx(len(reward) / 2)
    assert torch.equal(votes, combine_rewards(reward + 7, torch.zeros(len(reward), dtype=torch.int64), "vote"))


def test_the_likeliest_critique_is_kept() -> None:
    """Per token: -4 / 4 of the first response's second critique beats -2 / 1 of its first."""
    copies = tuple(Response(f"r{i // 2}", critiques={"full": f"c{i}"}) for i in range(4))
    scores = GroupScores(
        logprob=torch.tensor([-2.0, -4.0, -1.0, -6.0]),
        num_tokens=torch.tensor([1.0, 4.0, 2.0, 3.0]),
        cut=torch.tensor([0.0, 0.0, 7.0, 7.0]),
        token_logprob=tuple(torch.zeros(count) for count in (1, 4, 2, 3)),
        reward=torch.tensor([1.0, 2.0, 3.0, 5.0]),
        dimensions=torch.tensor([[0.0], [1.0], [2.0], [4.0]]),
    )
    group = PreferenceGroup("k", "?", copies)
    asked = {"kind": "full", "dimensions": ("ethics",), "samples": 2}
    first, second = verdicts_on(group, scores, combine="mean", **asked)
    assert (first.reward, first.critique, first.critique_tokens, first.critique_logprob) == (1.5, "c1", 4, -4.0)
    assert (second.reward, second.critique, second.dimensions) == (4.0, "c2", {"ethics": 3.0})
    assert second.columns() == {
        "reward": 4.0, "critique": "c2", "critique_tokens": 2, "critique_logprob": -1.0, "critique_cut": False,
        "response_cut": 7, "score_ethics": 3.0,
    }  # fmt: skip
    assert [verdict.reward for verdict in verdicts_on(group, scores, combine="best", **asked)] == [2.0, 3.0]


@pytest.mark.parametrize("combine", ["mean", "best", "vote"])
def test_one_critique_is_combined_as_several_are(combine: Combine) -> None:
    """So a vote is a share of comparisons, and never a reward on another scale, however many critiques there are."""
    rewards = torch.tensor([1.0, 5.0, 3.0])
    group = PreferenceGroup("k", "?", tuple(Response(f"r{n}", critiques={"full": "c"}) for n in range(3)))
    scores = GroupScores(
        -torch.ones(3), torch.ones(3), torch.zeros(3), (torch.zeros(1),) * 3, rewards, torch.zeros(3, 0)
    )
    found = verdicts_on(group, scores, kind="full", dimensions=(), samples=1, combine=combine)
    assert [verdict.reward for verdict in found] == ([0.0, 1.0, 0.5] if combine == "vote" else rewards.tolist())
