"""Preference training on single responses with a label each: KTO. Pairs are not needed.

Follows: KTO (arXiv 2402.01306). Differs in: the KL that a step's responses are compared with is over these responses
themselves, of all ranks and micro-batches, at the price of a second forward; see `mmrlhf.losses.prospect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from mmrlhf.losses.pairs import listed_ranks
from mmrlhf.losses.prospect import ResponseObjective
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.pairing import REWARD, candidate_pairs
from mmrlhf.methods.preference import PreferenceModule, Responses
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.processes import gather_ranks
from mmrlhf.tensors import PackedBatch


class SingleResponseModule(PreferenceModule):
    """Trains a policy on labelled responses; the loss is the mean over responses that have a label.

    Args: as for `PreferenceModule`, with a `ResponseObjective`.
    """

    @property
    def _response_objective(self) -> ResponseObjective:
        assert isinstance(self._objective, ResponseObjective)
        return self._objective

    @override
    def count(self, batch: PackedBatch) -> Counts:
        counts = super().count(batch)
        return replace(counts, divisors={**counts.divisors, "preference": self._weights(batch).sum()})

    @override
    def prepare(self, micro_batches: Sequence[PackedBatch]) -> list[Counts]:
        """Count, and find the step's KL over all ranks from every labelled response."""
        counts = PackedModule.prepare(self, micro_batches)
        total = torch.zeros(2)
        with torch.no_grad():
            for batch in (each.to(self.device) for each in micro_batches):
                ratio = self._ask(batch).log_ratio
                weight = self._weights(batch)
                total += torch.stack(((weight * ratio).sum(), weight.sum())).cpu()
        ratios, weights = torch.stack(gather_ranks(total)).sum(0)
        kl = (ratios / weights.clamp(min=torch.finfo(weights.dtype).tiny)).clamp(min=0)
        return [replace(own, kl=kl) for own in counts]

    @override
    def sums_over_responses(
        self, batch: PackedBatch, counts: Counts, responses: Responses, record: StepRecord
    ) -> dict[str, Tensor]:
        assert counts.kl is not None, "found by `prepare`"
        labels, weight = self._labels(batch), self._weights(batch)
        losses = self._response_objective.response_loss(responses.log_ratio, labels, counts.kl)
        record.add("desirable", torch.nan_to_num(labels), weight)
        record.add("baseline_kl", counts.kl.expand_as(weight), weight)
        return {"preference": (weight * losses).sum()}

    def _labels(self, batch: PackedBatch) -> Tensor:
        group = batch.group_of_response
        ranks = listed_ranks(*candidate_pairs(batch, self._pairs), group)
        return self._response_objective.labels(ranks, batch.columns.get(REWARD), group)

    def _weights(self, batch: PackedBatch) -> Tensor:
        """Weight of each response (R,): its group's, or 0 for a response without a label."""
        return batch.group_weight[batch.group_of_response] * ~self._labels(batch).isnan()
