"""Preference training on ranked groups: every response is scored once, all pairs of a query are compared from that.

Follows: MM-DPO (arXiv 2502.10391, section 5: all pairs of a query, margins from a reward model) with any `Objective`.
Differs in: the reference's log-probabilities come from a table, from the policy without its adapters, or from a frozen
copy, so a second model is loaded only where asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from mmrlhf.errors import ConfigError, DataError, UserError
from mmrlhf.losses.objective import Objective, PairInputs, given
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.heldout import PairScores
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.pairing import (
    REFERENCE,
    REFERENCE_TOKENS,
    REWARD,
    PairScheme,
    pair_inputs,
    pair_names,
    pair_scores,
    record_drift,
    record_pairs,
    scale_over_step,
    weighted_pairs,
)
from mmrlhf.methods.sft import label_counts
from mmrlhf.methods.start_check import measure, require_same_model
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import PackedBatch, PairIndex, ResponseOutputs

Reference = Literal["table", "adapter", "frozen_copy", "none"]
MarginFrom = Literal["reward", "implicit"]


@dataclass(frozen=True)
class Responses:
    """What the policy and its reference (R,), where there is one, say about the responses of a row.

    reference_token_logprob: (N,) as the policy's, where the reference itself has read the row.
    """

    outputs: ResponseOutputs
    reference: Tensor | None
    reference_token_logprob: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log policy - log reference (R,) float32."""
        return self.outputs.logprob.float() - given(self.reference, "reference_logprob").float()


class PreferenceModule(PackedModule):
    """Trains a policy with a pairwise objective.

    Args:
        model: the policy.
        objective: the loss of a pair.
        pairs: which pairs.
        optim, total_steps, seed, precision: see `PackedModule`.
        reference: where the reference's log-probabilities come from: `table` (column `reference_logprob`), `adapter`
            (the policy with its adapters off), `frozen_copy` (the model in `reference_model`), or `none` for
            objectives without a reference.
        reference_model: the frozen copy.
        margin_from: what a margin is the difference of: `reward` (column `reward`: whoever gave it), or `implicit`,
            the policy's own beta * log-ratio as it stands, without gradient.
        starts_as_reference: the table is of the policy as it starts; measured before the first update of a run.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        pairs: PairScheme,
        optim: OptimSettings,
        *,
        total_steps: int,
        reference: Reference = "table",
        reference_model: nn.Module | None = None,
        margin_from: MarginFrom = "reward",
        starts_as_reference: bool = False,
        seed: int = 0,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__(model, optim, total_steps=total_steps, seed=seed, precision=precision)
        if objective.needs_reference and reference == "none":
            raise ConfigError(
                "this objective compares the policy with a reference",
                where="reference",
                given="none",
                expected="table, adapter or frozen_copy",
            )
        if (reference == "frozen_copy") != (reference_model is not None):
            raise ValueError("reference_model is given exactly with reference=frozen_copy")
        self._objective, self._pairs, self._reference, self._margin_from = objective, pairs, reference, margin_from
        self._starts_as_reference = starts_as_reference
        # In a tuple: a registered submodule would be trained by DDP, sharded by FSDP and stored in every checkpoint.
        self._frozen: tuple[nn.Module, ...] = ()
        if reference_model is not None:
            self._frozen = (reference_model.requires_grad_(False).eval(),)

    @property
    def _needs_table(self) -> bool:
        return self._objective.needs_reference and self._reference == "table"

    @property
    @override
    def part_weights(self) -> Mapping[str, float]:
        return {"preference": 1.0} | ({"sft": 1.0} if self._objective.sft_weight > 0 else {})

    @override
    def on_fit_start(self) -> None:
        for model in self._frozen:
            model.to(self.device)

    @override
    def on_validation_start(self) -> None:
        self.on_fit_start()

    @override
    def count(self, batch: PackedBatch) -> Counts:
        needs_rewards = self._objective.needs_margin and self._margin_from == "reward"
        self._require(batch, REWARD, needs_rewards, "score", "rewards")
        self._require(batch, REFERENCE, self._needs_table, "reference", "reference log-probabilities")
        pairs = weighted_pairs(batch, self._pairs)
        return Counts(dict.fromkeys(self.part_weights, pairs.weight.sum()), pairs)

    @override
    def complaint(self, batch: PackedBatch) -> UserError | None:
        """A table that was made from other tokens: responses cut elsewhere, or another tokenizer."""
        tabled = batch.columns.get(REFERENCE_TOKENS)
        if tabled is None or not self._needs_table:
            return None
        counts = label_counts(batch)
        for number in (tabled != counts).nonzero()[:1, 0].tolist():
            return DataError(
                "the reference's log-probability is of another number of tokens than the policy's",
                where=f"key {batch.keys[int(batch.group_of_response[number])]}, "
                f"response hash {batch.response_hashes[number]}",
                given=f"{tabled[number]:.0f} tokens in the table, {counts[number]:.0f} in training",
                expected="the same tokens: one max_tokens, one tokenizer, one chat template",
                fix="let the stage `reference` make the table again with this run's settings",
            )
        return None

    @override
    def check_start(self, micro_batches: Sequence[PackedBatch]) -> None:
        """Stop where the table's reference is not the policy as it starts; other references are so by construction."""
        first = micro_batches[0]
        if not (self._starts_as_reference and self._needs_table and REFERENCE in first.columns):
            return
        batch = first.to(self.device)
        found = measure(self.model, batch, batch.columns[REFERENCE])
        require_same_model(found, precision=self._precision, where=f"stage {self.stage}, before step 0")

    @override
    def prepare(self, micro_batches: Sequence[PackedBatch]) -> list[Counts]:
        """Count; an objective with call statistics also sees the whole step, over all ranks, before the first pair."""
        counts = super().prepare(micro_batches)
        if not self._objective.uses_call_statistics:
            return counts
        both = list(zip(micro_batches, counts, strict=True))
        with torch.no_grad():
            shares = [self._forward(batch.to(self.device), own.to(self.device))[1] for batch, own in both]
        names = [pair_names(batch, own.pairs) for batch, own in both]
        scales = scale_over_step(self._objective, shares, names, rank=self.global_rank)
        return [replace(own, scale=scale) for own, scale in zip(counts, scales, strict=True)]

    @override
    def loss_sums(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> Mapping[str, Tensor]:
        return self._compare(batch, counts, record)[0]

    @override
    def score_pairs(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> PairScores:
        """Score all of the annotators' held-out pairs by what the objective compares, whatever pairs it trains on."""
        sums, responses = self._compare(batch, counts, record)
        self._record_parts(sums, counts, record)
        every = weighted_pairs(batch, PairScheme())
        chosen, rejected = self._objective.scores(self._pair(batch, responses, every))
        return pair_scores(batch, every, chosen, rejected)

    def _forward(self, batch: PackedBatch, counts: Counts) -> tuple[Responses, PairInputs]:
        """Run the policy and its reference, and pair their log-probabilities."""
        assert counts.pairs is not None
        responses = self._ask(batch)
        return responses, self._pair(batch, responses, counts.pairs)

    def _ask(self, batch: PackedBatch) -> Responses:
        """Run the reference, then the policy, on a row."""
        if self._reference == "table":
            table = batch.columns.get(REFERENCE)
            return Responses(self.model(batch), None if table is None else table.float())
        if self._reference == "none":
            return Responses(self.model(batch), None)
        # first, so that nothing that the policy keeps for backward is there meanwhile
        reference = self._run_reference(batch)
        return Responses(self.model(batch), reference.logprob, reference.token_logprob)

    def _pair(self, batch: PackedBatch, responses: Responses, pairs: PairIndex) -> PairInputs:
        reward = batch.columns.get(REWARD)
        if self._margin_from == "implicit":
            # without a reference there are no implicit rewards, and no objective that would need them
            known = responses.reference is not None
            reward = self._objective.beta * responses.log_ratio.detach() if known else None
        return pair_inputs(responses.outputs, responses.reference, reward, pairs)

    def _compare(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> tuple[dict[str, Tensor], Responses]:
        """Forward, pair and compare: the parts' sums over pairs, and what was said about the responses."""
        assert counts.pairs is not None
        weight = counts.pairs.weight
        responses, inputs = self._forward(batch, counts)
        with torch.no_grad():
            scale = self._objective.scale(inputs) if counts.scale is None else counts.scale
        terms = self._objective(inputs, scale)
        record_pairs(record, inputs, terms, weight)
        record.add("kept_pairs", (scale.a > 0).float(), weight)
        if responses.reference is not None:
            record_drift(record, responses.log_ratio.detach(), counts.pairs)
        sums = {"preference": (weight * terms.loss).sum()}
        if self._objective.sft_weight > 0:
            # The objective adds the two up; apart, each has its own curve.
            sums["sft"] = self._objective.sft_weight * (weight * self._objective.sft_term(inputs)).sum()
            sums["preference"] = sums["preference"] - sums["sft"]
        return sums | self.sums_over_responses(batch, counts, responses, record), responses

    def sums_over_responses(
        self, batch: PackedBatch, counts: Counts, responses: Responses, record: StepRecord
    ) -> dict[str, Tensor]:
        """Sums of the loss's parts that are not made of pairs; a part of the same name takes the pairs' place."""
        return {}

    @torch.no_grad()
    def _run_reference(self, batch: PackedBatch) -> ResponseOutputs:
        if self._reference == "adapter":
            return self._without_adapters(batch)
        (frozen,) = self._frozen
        return frozen(batch)

    def _without_adapters(self, batch: PackedBatch) -> ResponseOutputs:
        """What the policy says with its adapters off and, as a reference, without dropout."""
        model: Any = self.model
        training = model.training
        model.eval()
        try:
            with model.adapters_off():
                return model(batch)
        finally:
            model.train(training)

    def _require(self, batch: PackedBatch, column: str, needed: bool, stage: str, noun: str) -> None:
        if not needed or column in batch.columns:
            return
        raise ConfigError(
            f"{type(self._objective).__name__} needs {noun}, but no table with the column '{column}' is given",
            where=f"stage mmdpo, input of the stage `{stage}`",
            given=f"columns: {', '.join(sorted(batch.columns)) or 'none'}",
            expected=f"the folder that the stage `{stage}` writes",
            fix=f"set the input back to `stage:{stage}`, or choose an objective that needs no {noun}",
        )
