"""From responses to pairs: which pairs count, what is known about each, and what a whole step says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.losses.objective import Objective, PairInputs, PairScale, PairTerms
from mmrlhf.losses.pairs import Scheme, Weighting, build_pairs, ordered_pairs, tied_pairs
from mmrlhf.methods.heldout import PairScores
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.processes import gather_ranks
from mmrlhf.ranges import Finite, check_fields
from mmrlhf.tensors import PackedBatch, PairIndex, ResponseOutputs

# Columns of a batch: what a reward model, or the reference, says about each response.
REWARD, REFERENCE = "reward", "reference_logprob"
REFERENCE_TOKENS, DAMAGED_REFERENCE = "reference_tokens", "reference_damaged_logprob"
SHARED_REFERENCE = "reference_shared_"

# Group key, hashes of the chosen and the rejected response: the same whatever micro-batch the pair is in.
PairName = tuple[str, str, str]


def shared_column(number: int) -> str:
    """The reference's log-probability of a response's first tokens, as many as response `number` of its query has."""
    return f"{SHARED_REFERENCE}{number}"


@dataclass(frozen=True)
class PairScheme:
    """Which pairs of a query enter the loss, and how much each weighs.

    Args:
        scheme: `all` pairs of different rank, only the `hardest` (best against worst), `adjacent` ranks, or
            `best_vs_rest`.
        weighting: `pair`: every pair weighs the same; `query`: the pairs of a query share a weight of 1.
        rank_by: `annotators`: the data's ranks and pairs; `reward`: the rewards, for responses that nobody ranked.
        ties: responses of equal rank: `drop` them; `even`: as pairs whose two sides should come out equal; `reward`:
            the rewards decide between them.
        min_margin: pairs whose margin is at or below this do not enter, before `scheme` chooses; ties that are `even`
            have no side, and enter. None: no filter.
    """

    scheme: Scheme = "all"
    weighting: Weighting = "pair"
    rank_by: Literal["annotators", "reward"] = "annotators"
    ties: Literal["drop", "even", "reward"] = "drop"
    min_margin: Finite | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs_margin(self) -> bool:
        """Whether pairs cannot be chosen without rewards."""
        return self.rank_by == "reward" or self.ties == "reward" or self.min_margin is not None


def candidate_pairs(batch: PackedBatch, scheme: PairScheme) -> tuple[Tensor, Tensor]:
    """The pairs (Q, 2) that a scheme chooses from, and the ranks (R,) behind them.

    Pairs that a cut has made equal are none: their gradient is 0, and their loss would hide that of the others.

    Raises: ConfigError where the scheme needs rewards and the batch has none.
    """
    pairs, ranks, group = batch.pairs, batch.columns["rank"], batch.group_of_response
    if not scheme.needs_margin:
        return _differing(pairs, batch.content), ranks
    reward = batch.columns.get(REWARD)
    if reward is None:
        raise ConfigError(
            "these pairs cannot be chosen without rewards",
            where="pairs",
            given=f"rank_by={scheme.rank_by}, ties={scheme.ties}, min_margin={scheme.min_margin}, and no rewards",
            expected="a table of rewards (inputs.rewards), which a reward model in training does not have",
        )
    if scheme.rank_by == "reward":
        ranks = -reward
        pairs = ordered_pairs(ranks, group)
    elif scheme.ties == "reward":
        tied = tied_pairs(ranks, group)
        gap = reward[tied[:, 0]] - reward[tied[:, 1]]
        decided = torch.cat((tied[gap > 0], tied[gap < 0].flip(1)))
        pairs = torch.cat((pairs, decided))
        # Less than a rank in sum, so that no response falls behind the next rank.
        ranks = ranks.index_add(0, decided[:, 1], torch.full_like(gap[gap != 0], 1 / (len(ranks) + 1)))
    if scheme.min_margin is not None:
        pairs = pairs[reward[pairs[:, 0]] - reward[pairs[:, 1]] > scheme.min_margin]
    return _differing(pairs, batch.content), ranks


def _differing(pairs: Tensor, content: Tensor) -> Tensor:
    return pairs[content[pairs[:, 0]] != content[pairs[:, 1]]]


def differing(pairs: PairIndex, batch: PackedBatch) -> PairIndex:
    """Pairs (P,) without those that a cut has made equal."""
    return _kept(pairs, batch.content[pairs.chosen] != batch.content[pairs.rejected])


def _kept(pairs: PairIndex, kept: Tensor) -> PairIndex:
    return PairIndex(pairs.chosen[kept], pairs.rejected[kept], pairs.group[kept], pairs.weight[kept])


def weighted_pairs(batch: PackedBatch, scheme: PairScheme) -> PairIndex:
    """The micro-batch's pairs of positive weight (P,); pairs of groups that only fill up the step are left out."""
    candidates, ranks = candidate_pairs(batch, scheme)
    tied = tied_pairs(ranks, batch.group_of_response) if scheme.ties == "even" else None
    pairs = build_pairs(
        candidates,
        ranks,
        batch.group_of_response,
        scheme=scheme.scheme,
        weighting=scheme.weighting,
        ties=None if tied is None else _differing(tied, batch.content),
        group_weight=batch.group_weight,
    )
    return _kept(pairs, pairs.weight > 0)


def pair_inputs(
    outputs: ResponseOutputs, reference: Tensor | None, reward: Tensor | None, pairs: PairIndex
) -> PairInputs:
    """Responses (R,) -> pairs (P,)."""
    chosen, rejected = pairs.chosen, pairs.rejected
    return PairInputs(
        chosen_logprob=outputs.logprob[chosen],
        rejected_logprob=outputs.logprob[rejected],
        reference_chosen=None if reference is None else reference[chosen],
        reference_rejected=None if reference is None else reference[rejected],
        margin=None if reward is None else (reward[chosen] - reward[rejected]).float(),
        chosen_tokens=outputs.num_tokens[chosen],
        rejected_tokens=outputs.num_tokens[rejected],
        chosen_reward=None if reward is None else reward[chosen].float(),
    )


def pair_names(batch: PackedBatch, pairs: PairIndex | None) -> list[PairName]:
    """Name each pair (P entries), independently of the micro-batch."""
    assert pairs is not None
    hashes = batch.response_hashes
    rows = zip(pairs.group.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    return [(batch.keys[group], hashes[chosen], hashes[rejected]) for group, chosen, rejected in rows]


def pair_scores(batch: PackedBatch, pairs: PairIndex, chosen: Tensor, rejected: Tensor) -> PairScores:
    """Scores (P,) of a held-out micro-batch's pairs, with their group keys."""
    keys = tuple(batch.keys[group] for group in pairs.group.tolist())
    return PairScores(keys, tuple(chosen.float().tolist()), tuple(rejected.float().tolist()))


def record_pairs(record: StepRecord, inputs: PairInputs, terms: PairTerms, weight: Tensor) -> None:
    """Record what a preference step is judged by; every value is a mean over pairs of weight (P,)."""
    record.add("accuracy", (terms.logit > 0).float(), weight)
    record.add("reward_margin", terms.reward_chosen - terms.reward_rejected, weight)
    record.add("reward_chosen", terms.reward_chosen, weight)
    record.add("reward_rejected", terms.reward_rejected, weight)
    record.add("beta", terms.beta, weight, spread=True)
    if inputs.margin is not None:
        record.add("margin", inputs.margin, weight, spread=True)
    record.add("logprob_chosen", inputs.chosen_logprob, weight)
    record.add("logprob_rejected", inputs.rejected_logprob, weight)
    if inputs.chosen_tokens is not None and inputs.rejected_tokens is not None:
        record.add("length_chosen", inputs.chosen_tokens, weight)
        record.add("length_rejected", inputs.rejected_tokens, weight)


def record_drift(record: StepRecord, log_ratio: Tensor, pairs: PairIndex) -> None:
    """Record the mean log-ratio of the responses that are in a pair, each once however many pairs it is in.

    log_ratio: (R,), log policy - log reference. The data's responses stand in for samples of the policy: a measure of
    drift, not an unbiased divergence.
    """
    compared = torch.cat((pairs.chosen, pairs.rejected))
    record.add("kl_estimate", log_ratio, torch.zeros_like(log_ratio).index_fill(0, compared, 1.0))


def scale_over_step(
    objective: Objective, shares: Sequence[PairInputs], names: Sequence[Sequence[PairName]], *, rank: int = 0
) -> list[PairScale]:
    """Find an objective's scale from all pairs of a step, of all ranks, and cut it up by this rank's micro-batches.

    Args:
        shares: this rank's pairs, one entry per micro-batch.
        names: the pairs' names; they fix the order, so that neither micro-batching nor ranks change a random choice.
            A query that an epoch sees twice may be in a step twice: its pairs share a name, but each is one of its own.
        rank: of this process.
    """
    own = [name for part in names for name in part]
    ranks = gather_ranks((own, _join([_on_host(share) for share in shares])))
    every = [name for part, _ in ranks for name in part]
    order = sorted(range(len(every)), key=every.__getitem__)
    with torch.no_grad():
        scale = objective.scale(_take(_join([inputs for _, inputs in ranks]), torch.tensor(order, dtype=torch.int64)))
    start = sum(len(part) for part, _ in ranks[:rank])
    place = torch.tensor(order, dtype=torch.int64).argsort()[start : start + len(own)]
    device = shares[0].chosen_logprob.device
    return [
        PairScale(*(getattr(scale, item.name)[rows].to(device) for item in fields(PairScale)))
        for rows in place.split([len(part) for part in names])
    ]


def _on_host(inputs: PairInputs) -> PairInputs:
    return _from_values([None if value is None else value.cpu() for value in _values(inputs)])


def _join(parts: Sequence[PairInputs]) -> PairInputs:
    columns = zip(*(_values(part) for part in parts), strict=True)
    return _from_values([None if column[0] is None else torch.cat(column) for column in columns])


def _take(inputs: PairInputs, rows: Tensor) -> PairInputs:
    return _from_values([None if value is None else value[rows] for value in _values(inputs)])


def _values(inputs: PairInputs) -> list[Any]:
    return [getattr(inputs, item.name) for item in fields(PairInputs)]


def _from_values(values: list[Any]) -> PairInputs:
    return PairInputs(*values)
