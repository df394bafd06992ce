"""One beta per call, from how far the policy already separates the pairs of the call.

Follows: beta-DPO (arXiv 2407.08639), its batch-level beta = [1 + alpha * (M - M0)] * beta_0, with M the mean of
M_i = beta_0 * z_i, and its beta-guided filtering of the share `filtered` of the pairs; and the code released with
MM-RLHF (commit 7c8af1d), which runs its own version of this in place of MM-DPO's beta.
Differs in: M0 is a setting and not a running mean, so that no state has to be saved (0 is its value where policy and
reference agree); the filter takes out the least likely pairs under its Gaussian, where the paper draws at random, and
these stay in the divisor at weight 0. docs/losses.md lays ours beside the authors' code (junkangwu/beta-DPO).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.losses.objective import Objective, PairInputs, PairScale, given
from mmrlhf.losses.seeded import generator_for
from mmrlhf.ranges import Finite, Natural, NonNegative, Positive, ShareBelowOne

# Nats. Where policy and reference agree, gaps are rounding, which another micro-batching changes: gaps that are closer
# than this are equal, and the order of the pairs, which their names fix, decides between them.
RESOLUTION = 0.01


@dataclass(frozen=True, kw_only=True)
class BetaDPO(Objective):
    """beta-DPO: b = beta * (1 + alpha * (mean(beta * z) - baseline)), at least min_beta, over the kept pairs.

    Args:
        alpha: >= 0, how strongly beta follows the gap; 0 is DPO on the kept pairs.
        baseline: M0, the gap at which beta is beta_0.
        filtered: share of the pairs, in [0, 1), furthest from the mean gap, that get weight 0.
        min_beta: > 0, lower bound of b.
    """

    alpha: NonNegative = 0.6
    baseline: Finite = 0.0
    filtered: ShareBelowOne = 0.2
    min_beta: Positive = 1e-3

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scale(self, inputs: PairInputs) -> PairScale:
        z = self.gap(inputs)
        gap = self.beta * z
        if len(gap) == 0:
            return PairScale.fill(inputs, b=self.beta)
        # 20 * (1 - 0.9) is a little less than 2 in floating point
        kept = max(1, int(len(gap) * (1 - self.filtered) + 1e-9))
        nearest = _quantised((z - z.mean()).abs()).argsort(stable=True)[:kept]
        beta = self.beta * (1 + self.alpha * (gap[nearest].mean() - self.baseline))
        keep = torch.zeros_like(gap).index_fill(0, nearest, 1.0)
        return PairScale.fill(inputs, b=beta.clamp(min=self.min_beta).expand_as(gap), a=keep)


@dataclass(frozen=True, kw_only=True)
class ReleasedImplicitBeta(Objective):
    """What the released MM-RLHF code trains: b = beta * (1 + w * (mean z of a drawn 80% - mean z)), at least 1e-3.

    No reward enters. The subset is drawn without replacement with Gaussian weights, from `seed` and the token counts;
    all pairs stay in the loss. Two defects are not reproduced: one pair per call gives beta (there: not a number), and
    label smoothing is not turned round. A named baseline, not something to train with.

    Args:
        w: >= 0, how strongly beta follows the gap of the drawn 80% of the pairs.
        seed: of the draw.
    """

    w: NonNegative = 0.5
    seed: Natural = 0

    @property
    def uses_call_statistics(self) -> bool:
        return True

    def scale(self, inputs: PairInputs) -> PairScale:
        gap = self.gap(inputs)
        if len(gap) < 2:
            return PairScale.fill(inputs, b=self.beta)
        drawn = self._draw(gap, inputs)
        beta = self.beta * (1 + self.w * (gap[drawn].mean() - gap.mean()))
        return PairScale.fill(inputs, b=beta.clamp(min=1e-3).expand_as(gap))

    def _draw(self, gap: Tensor, inputs: PairInputs) -> Tensor:
        gap = _quantised(gap)
        standardised = (gap - gap.mean()) / (gap.std() + 1e-7)
        # The floor keeps far-out pairs drawable: float32 underflows to 0 beyond 14 standard deviations.
        weight = torch.exp(-0.5 * standardised.square()).clamp(min=1e-30).cpu()
        # Token counts tell calls apart and, unlike gaps, do not change with a float's last digit.
        lengths = torch.stack(
            [given(inputs.chosen_tokens, "chosen_tokens"), given(inputs.rejected_tokens, "rejected_tokens")]
        )
        generator = generator_for(self.seed, lengths)
        return torch.multinomial(weight, max(1, int(len(gap) * 0.8)), generator=generator).to(gap.device)


def _quantised(gap: Tensor) -> Tensor:
    return (gap / RESOLUTION).round() * RESOLUTION
