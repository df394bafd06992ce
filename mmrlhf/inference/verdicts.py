"""What a reward model says about a response, and how several critiques of it become one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrlhf.inference.passes import GroupScores
from mmrlhf.inference.settings import Combine
from mmrlhf.types import PreferenceGroup

COLUMNS = ("reward", "critique", "critique_tokens", "critique_logprob", "critique_cut", "response_cut")


@dataclass(frozen=True)
class Verdict:
    """What the reward model says about one response; critique "" and 0 tokens where it writes none.

    critique_logprob is the critique's log-probability under the model; critique_cut whether it reached its longest
    length before it ended; response_cut tokens by which the response was shortened to fit; dimensions the head's other
    scores.
    """

    reward: float
    critique: str
    critique_tokens: int
    critique_logprob: float = 0.0
    critique_cut: bool = False
    response_cut: int = 0
    dimensions: Mapping[str, float] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The verdict as a row of a side-car: `COLUMNS`, then `score_<dimension>`."""
        named = {f"score_{name}": value for name, value in self.dimensions.items()}
        return {name: getattr(self, name) for name in COLUMNS} | named


def verdicts_on(
    group: PreferenceGroup,
    scores: GroupScores,
    *,
    kind: str,
    dimensions: tuple[str, ...],
    samples: int,
    combine: Combine,
    critique_cut: Sequence[bool] = (),
    response_cut: Sequence[int] = (),
) -> list[Verdict]:
    """One verdict for each response, from the scores of its `samples` critiques, which lie next to one another.

    Args:
        group: every response `samples` times, each with a critique of its own.
        kind: of the critiques; `none` where there are none.
        critique_cut: of each critique, whether it reached its longest length; empty: none did.
        response_cut: tokens that each response had lost before it was scored; empty: none.

    The critique that is kept, with its tokens and log-probability, is the likeliest per token; scores on dimensions
    are means over the critiques.
    """
    assert scores.reward is not None and scores.dimensions is not None
    reward, logprob, tokens = (each.reshape(-1, samples) for each in (scores.reward, scores.logprob, scores.num_tokens))
    likeliest = (logprob / tokens.clamp(min=1)).argmax(1)
    combined = combine_rewards(reward, likeliest, combine)
    means = scores.dimensions.reshape(len(reward), samples, -1).mean(1)
    found = []
    for number, best in enumerate(likeliest.tolist()):
        critique = group.responses[number * samples + best].critiques.get(kind, "") if kind != "none" else ""
        written = kind != "none"
        found.append(
            Verdict(
                reward=float(combined[number]),
                critique=critique,
                critique_tokens=int(tokens[number, best]) if written else 0,
                critique_logprob=float(logprob[number, best]) if written else 0.0,
                critique_cut=bool(critique_cut[number * samples + best]) if written and critique_cut else False,
                response_cut=int(scores.cut[number * samples])
                + (response_cut[number * samples] if response_cut else 0),
                dimensions=dict(zip(dimensions, means[number].tolist(), strict=True)),
            )
        )
    return found


def combine_rewards(reward: Tensor, likeliest: Tensor, combine: Combine) -> Tensor:
    """Make one reward (K,) of each response's scores behind n critiques.

    Args:
        reward: (K, n).
        likeliest: (K,), which critique is the likeliest.
        combine: see `CritiqueSettings`. A vote is 1/2 where a query has one response only.
    """
    if combine == "mean":
        return reward.mean(1)
    if combine == "best":
        return reward.gather(1, likeliest[:, None])[:, 0]
    if len(reward) == 1:
        return torch.full((1,), 0.5)
    ahead = reward[:, None, :, None] - reward[None, :, None, :]
    won = ((ahead > 0).float() + 0.5 * (ahead == 0).float()).sum((2, 3))
    won.fill_diagonal_(0.0)
    # counted first and divided once: shares that are equal come out equal, and tie
    return won.sum(1) / (reward.shape[1] ** 2 * (len(reward) - 1))
