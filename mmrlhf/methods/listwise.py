"""Preference training on whole rankings: one Plackett-Luce term for each query in place of its pairs.

Follows: Plackett-Luce DPO (arXiv 2305.18290, appendix A.3). Differs in: pairs are still compared, for the curves and
for the supervised term, so that a run can be laid beside a pairwise one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from mmrlhf.errors import ConfigError
from mmrlhf.losses.pairs import listed_ranks
from mmrlhf.losses.plackett_luce import PlackettLuce
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.pairing import PairScheme, candidate_pairs
from mmrlhf.methods.preference import PreferenceModule, Responses
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import PackedBatch


class RankingModule(PreferenceModule):
    """Trains a policy on the rankings of `candidate_pairs`; the loss is the mean over queries that have a ranking.

    Args: as for `PreferenceModule`, with a `PlackettLuce` objective.

    Raises:
        ConfigError: from `count`: a pair scheme that would take pairs out of the ranking.
    """

    @override
    def count(self, batch: PackedBatch) -> Counts:
        require_whole_ranking(self._pairs)
        counts = super().count(batch)
        assert counts.pairs is not None
        ranked = torch.zeros_like(batch.group_weight).index_fill(0, counts.pairs.group, 1.0)
        return replace(counts, divisors={**counts.divisors, "preference": (ranked * batch.group_weight).sum()})

    @override
    def sums_over_responses(
        self, batch: PackedBatch, counts: Counts, responses: Responses, record: StepRecord
    ) -> dict[str, Tensor]:
        objective, group = self._objective, batch.group_of_response
        assert isinstance(objective, PlackettLuce)
        ranks = listed_ranks(*candidate_pairs(batch, self._pairs), group)
        losses = objective.ranking_loss(responses.log_ratio, ranks, group, num_groups=len(batch.keys))
        return {"preference": (batch.group_weight * losses).sum()}


def require_whole_ranking(pairs: PairScheme) -> None:
    """Refuse a scheme that takes pairs out of a ranking, or has pairs that no ranking has (ConfigError)."""
    if pairs.scheme != "all" or pairs.ties == "even" or pairs.min_margin is not None:
        raise ConfigError(
            "Plackett-Luce reads the whole ranking of a query, not chosen pairs",
            where="pairs",
            given=f"scheme={pairs.scheme}, ties={pairs.ties}, min_margin={pairs.min_margin}",
            expected="scheme=all, ties drop or reward, no min_margin",
        )
