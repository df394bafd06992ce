"""Critique-based reward training: write the critique, then read the score off the state behind it.

Follows: MM-RLHF (arXiv 2502.10391, section 4): L = L_critique + L_score, the annotated critique in context (teacher
forcing), one backbone with two heads. Differs in: a response is forwarded once however many pairs it is in, so its
critique counts once; ties enter through their own term instead of breaking the pair loss; centring is an option (the
released code has it at 0.01, the paper does not mention it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from mmrlhf.losses.bradley_terry import bradley_terry, centring, tie_loss
from mmrlhf.losses.pairs import listed_ranks, tied_pairs
from mmrlhf.losses.plackett_luce import best_of_all, plackett_luce
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.heldout import PairScores
from mmrlhf.methods.listwise import require_whole_ranking
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.pairing import PairScheme, candidate_pairs, differing, pair_scores, weighted_pairs
from mmrlhf.methods.sft import label_counts
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.ranges import NonNegative, check_fields
from mmrlhf.tensors import PackedBatch, PairIndex, ResponseOutputs


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the parts of a reward model's loss; a part of weight 0 is left out.

    Args:
        critique: next-token loss of the critique: the mean over its tokens, then over what `critique_over` says.
        score: loss of the scores: what `score_over` says.
        tie: squared difference of the scores of responses that share a rank, mean over such pairs (those that a cut
            has made equal are none, here and below).
        centring: squared sum of a pair's scores (keeps scores around zero), mean over pairs.
        dimensions: Bradley-Terry loss on each annotated dimension's own score, mean over the pairs of all dimensions.
        critique_over: `responses`: mean over responses, each once; `pairs`: mean over pairs of the chosen's plus the
            rejected's, as in the released code: twice as much where each response is in one pair, and a response in
            several pairs counts in each.
        score_over: `pairs`: Bradley-Terry, mean over pairs; `ranking`: the list-wise cross-entropy of a query's whole
            ranking under Plackett-Luce, mean over queries with one; `best`: the cross-entropy of its scores with the
            best response as the right class, mean over the same; for two responses all three are the same.
    """

    critique: NonNegative = 1.0
    score: NonNegative = 1.0
    tie: NonNegative = 0.0
    centring: NonNegative = 0.0
    dimensions: NonNegative = 0.0
    critique_over: Literal["responses", "pairs"] = "responses"
    score_over: Literal["pairs", "ranking", "best"] = "pairs"

    def __post_init__(self) -> None:
        check_fields(self)

    def without_critique(self) -> RewardWeights:
        """The same weights for a model that writes no critique."""
        return replace(self, critique=0.0)


class CritiqueRewardModule(PackedModule):
    """Trains a critique head (the language-model head) and a score head on one backbone.

    Args:
        model: has `scores(outputs) -> (R, 1 + dimensions)`; batches are encoded with `CritiqueTemplate`.
        weights: of the loss's parts; use `without_critique` where the template has none.
        optim, total_steps, seed, precision: see `PackedModule`.
        pairs: which pairs are compared.
        dimensions: names of the scores behind the reward, in the head's order; batches have columns `score_<name>`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: RewardWeights,
        optim: OptimSettings,
        *,
        total_steps: int,
        pairs: PairScheme | None = None,
        dimensions: Sequence[str] = (),
        seed: int = 0,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__(model, optim, total_steps=total_steps, seed=seed, precision=precision)
        self._pairs, self._dimensions = pairs or PairScheme(), tuple(dimensions)
        self._critique_over, self._score_over = weights.critique_over, weights.score_over
        if self._score_over != "pairs":
            require_whole_ranking(self._pairs)
        parts = {
            "critique": weights.critique,
            "score": weights.score,
            "ties": weights.tie,
            "centring": weights.centring,
            "dimensions": weights.dimensions if self._dimensions else 0.0,
        }
        self._part_weights = {name: weight for name, weight in parts.items() if weight != 0}

    @property
    @override
    def part_weights(self) -> Mapping[str, float]:
        return self._part_weights

    @override
    def count(self, batch: PackedBatch) -> Counts:
        rank = batch.columns["rank"]
        pairs = weighted_pairs(batch, self._pairs)
        ties = differing(_ties(rank, batch.group_of_response, batch.group_weight), batch)
        compared = pairs.weight.sum()
        on_dimensions = [pairs.weight.sum() for pairs in self._dimension_pairs(batch)]
        divisors = {
            "critique": compared if self._critique_over == "pairs" else _critique_weight(batch).sum(),
            "score": compared if self._score_over == "pairs" else _ranked_weight(batch, pairs).sum(),
            "ties": ties.weight.sum(),
            "centring": compared,
            "dimensions": torch.stack(on_dimensions).sum() if on_dimensions else compared.new_zeros(()),
        }
        return Counts(divisors, pairs, ties)

    @override
    def loss_sums(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> Mapping[str, Tensor]:
        return self._compare(batch, counts, record)[0]

    @override
    def score_pairs(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> PairScores:
        """Score all of the annotators' held-out pairs, whatever pairs it trains on, with their critiques in context."""
        sums, rewards = self._compare(batch, counts, record)
        self._record_parts(sums, counts, record)
        every = weighted_pairs(batch, PairScheme())
        return pair_scores(batch, every, rewards[every.chosen], rewards[every.rejected])

    def _compare(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and compare: the parts' sums, and the rewards (R,)."""
        pairs, ties = counts.pairs, counts.ties
        assert pairs is not None and ties is not None
        model: Any = self.model
        outputs: ResponseOutputs = model(batch)
        scores = model.scores(outputs)
        rewards = scores[:, 0]
        chosen, rejected = rewards[pairs.chosen], rewards[pairs.rejected]
        written = _critique_weight(batch)
        nll = -outputs.logprob / outputs.num_tokens.clamp(min=1)
        sums = {
            "critique": self._critique_sum(nll, written, pairs),
            "score": self._score_sum(batch, rewards, pairs),
            "ties": (ties.weight * tie_loss(rewards[ties.chosen], rewards[ties.rejected])).sum(),
            "centring": (pairs.weight * centring(chosen, rejected)).sum(),
            "dimensions": self._compare_dimensions(batch, scores[:, 1:], record),
        }
        record.add("accuracy", (chosen > rejected).float(), pairs.weight)
        record.add("reward_margin", chosen - rejected, pairs.weight)
        record.add("critique_nll_per_token", nll, written * outputs.num_tokens)
        record.add("reward", rewards, batch.group_weight[batch.group_of_response], spread=True)
        return sums, rewards

    def _score_sum(self, batch: PackedBatch, rewards: Tensor, pairs: PairIndex) -> Tensor:
        """The ranking loss's sum, of the rewards (R,)."""
        if self._score_over == "pairs":
            return (pairs.weight * bradley_terry(rewards[pairs.chosen], rewards[pairs.rejected])).sum()
        group = batch.group_of_response
        ranks = listed_ranks(*candidate_pairs(batch, self._pairs), group)
        loss = best_of_all if self._score_over == "best" else plackett_luce
        return (batch.group_weight * loss(rewards, ranks, group, num_groups=len(batch.keys))).sum()

    def _critique_sum(self, nll: Tensor, written: Tensor, pairs: PairIndex) -> Tensor:
        """The critiques' sum, of their losses per token and weights (R,)."""
        if self._critique_over == "responses":
            return (written * nll).sum()
        losses = torch.where(written > 0, nll, 0.0)
        return (pairs.weight * (losses[pairs.chosen] + losses[pairs.rejected])).sum()

    def _compare_dimensions(self, batch: PackedBatch, scores: Tensor, record: StepRecord) -> Tensor:
        """The sum over dimensions and their pairs, of the dimensions' own scores (R, number of dimensions)."""
        total = scores.new_zeros(())
        for number, (name, pairs) in enumerate(zip(self._dimensions, self._dimension_pairs(batch), strict=True)):
            better, worse = scores[pairs.chosen, number], scores[pairs.rejected, number]
            total = total + (pairs.weight * bradley_terry(better, worse)).sum()
            record.add(f"accuracy_{name}", (better > worse).float(), pairs.weight)
        return total

    def _dimension_pairs(self, batch: PackedBatch) -> list[PairIndex]:
        """For each dimension, the pairs that its annotated scores tell apart."""
        columns = [batch.columns[f"score_{name}"] for name in self._dimensions]
        found = [scored_pairs(column, batch.group_of_response, batch.group_weight) for column in columns]
        return [differing(pairs, batch) for pairs in found]


def _ranked_weight(batch: PackedBatch, pairs: PairIndex) -> Tensor:
    """Weight of each group (G,), 0 for one without two responses of different rank."""
    return torch.zeros_like(batch.group_weight).index_fill(0, pairs.group, 1.0) * batch.group_weight


def _ties(rank: Tensor, group_of_response: Tensor, group_weight: Tensor) -> PairIndex:
    """Every two responses of a group of positive weight that share a rank, each pair once."""
    first, second = tied_pairs(torch.where(group_weight[group_of_response] > 0, rank, torch.nan), group_of_response).T
    group = group_of_response[first]
    return PairIndex(first, second, group, group_weight[group].float())


def scored_pairs(score: Tensor, group_of_response: Tensor, group_weight: Tensor) -> PairIndex:
    """Every pair of a group's responses of which one has the higher score (score (R,), nan: unknown, in no pair)."""
    higher = (score[:, None] > score[None, :]) & (group_of_response[:, None] == group_of_response[None, :])
    higher &= (group_weight[group_of_response] > 0)[:, None]
    chosen, rejected = higher.nonzero(as_tuple=True)
    group = group_of_response[chosen]
    return PairIndex(chosen, rejected, group, group_weight[group].float())


def _critique_weight(batch: PackedBatch) -> Tensor:
    """Weight of each response's critique (R,): its group's, or 0 for a response without one."""
    return batch.group_weight[batch.group_of_response] * (label_counts(batch) > 0)
