"""Supervised training on responses: the mean negative log-probability of the step's response tokens.

Follows: ordinary supervised fine-tuning. Differs in: a query's media and prompt are read once for all its responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from mmrlhf.errors import ConfigError
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import PackedBatch, ResponseOutputs


class SFTModule(PackedModule):
    """Trains a model to write the responses.

    Args:
        model: the model.
        optim, total_steps, seed, precision: see `PackedModule`.
        responses: `best`: only responses of the best rank in their group (all of an unranked group); `all`.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimSettings,
        *,
        total_steps: int,
        responses: Literal["all", "best"] = "best",
        seed: int = 0,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__(model, optim, total_steps=total_steps, seed=seed, precision=precision)
        if responses not in ("all", "best"):
            wanted = "all or best"
            raise ConfigError("unknown choice of responses", argument="responses", given=responses, expected=wanted)
        self._responses = responses

    @property
    @override
    def part_weights(self) -> Mapping[str, float]:
        return {"nll": 1.0}

    @override
    def count(self, batch: PackedBatch) -> Counts:
        return Counts({"nll": (self._weight(batch) * label_counts(batch)).sum()})

    @override
    def loss_sums(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> Mapping[str, Tensor]:
        outputs: ResponseOutputs = self.model(batch)
        weight = self._weight(batch)
        record.add("logprob", outputs.logprob, weight)
        record.add("length", outputs.num_tokens, weight)
        return {"nll": -(weight * outputs.logprob).sum()}

    def _weight(self, batch: PackedBatch) -> Tensor:
        """Which responses count, and how much (R,)."""
        weight = batch.group_weight[batch.group_of_response]
        return weight if self._responses == "all" else weight * best_of_group(batch)


def label_counts(batch: PackedBatch) -> Tensor:
    """Label tokens of each response (R,), float."""
    return torch.bincount(batch.label_response, minlength=batch.num_responses).float()


def best_of_group(batch: PackedBatch) -> Tensor:
    """1.0 for responses of the best rank in their group (R,); all of a group without ranks; ties are all best."""
    rank = batch.columns["rank"]
    comparable = torch.where(rank.isnan(), torch.inf, rank)
    best = torch.full((len(batch.keys),), torch.inf, device=rank.device, dtype=comparable.dtype)
    best = best.scatter_reduce(0, batch.group_of_response, comparable, "amin")
    return (comparable == best[batch.group_of_response]).float()
