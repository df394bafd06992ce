"""LD-DPO: DPO in which what a response says beyond the other one's length counts less.

Follows: LD-DPO (arXiv 2409.06411), its reformulated likelihood: with n the length of the pair's shorter response,
log p(y) = sum of the first n tokens' log-probabilities + alpha * sum of the tokens behind them. The shorter response is
whole; policy and reference are read alike, as in TRL (`ld_alpha`).
Differs in: nothing; alpha = 1 is DPO, alpha = 0 compares the first n tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, given
from mmrlhf.ranges import Share


@dataclass(frozen=True, kw_only=True)
class LDDPO(Objective):
    """DPO on log p(first n tokens) + alpha * log p(the tokens behind them).

    Args:
        alpha: weight of a longer response's tokens beyond the shorter one's length, in [0, 1]; 1 is DPO.
    """

    alpha: Share = 0.5

    needs_shared_lengths: ClassVar[bool] = True

    def scores(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        whole = super().scores(inputs)
        shared = (
            _ratio(inputs.chosen_shared, inputs.reference_chosen_shared, "chosen"),
            _ratio(inputs.rejected_shared, inputs.reference_rejected_shared, "rejected"),
        )
        chosen, rejected = (self.alpha * a + (1 - self.alpha) * b for a, b in zip(whole, shared, strict=True))
        return chosen, rejected


def _ratio(logprob: Tensor | None, reference: Tensor | None, side: str) -> Tensor:
    return given(logprob, f"{side}_shared").float() - given(reference, f"reference_{side}_shared").float()
