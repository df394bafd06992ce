"""beta as a function of the reward margin delta = r(chosen) - r(rejected).

Follows: MM-RLHF (arXiv 2502.10391), section on MM-DPO:
    beta(delta) = beta * (1 + w * (1 - exp(-k * delta))), kept inside [beta, (1 + w) * beta].
Differs in: the paper leaves delta < 0 and delta's scale open; both are settings here, and the defaults (floor, raw)
are the paper's sentence taken literally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmrlhf.errors import ConfigError
from mmrlhf.ranges import NonNegative, Positive, check_fields

NegativeMargin = Literal["floor", "signed", "drop"]
MarginScale = Literal["raw", "standardise"] | Positive


class BetaOfMargin(NamedTuple):
    """beta (P,) and keep (P,): 1.0, or 0.0 for a pair that is left out of the loss."""

    beta: Tensor
    keep: Tensor


@dataclass(frozen=True)
class MarginBeta:
    """Turn margins (P,) into one beta per pair.

    Args:
        beta: beta_ori > 0, the smallest beta that a pair with delta >= 0 gets.
        w: >= 0, how far beta may rise: up to (1 + w) * beta.
        k: > 0, how fast it rises with the margin, per unit of the scaled margin.
        negative_margin: what delta < 0 does. `floor`: beta stays beta_ori (the paper). `signed`: the curve goes on
            point-symmetrically, beta * (1 - w * (1 - exp(-k * |delta|))) in [(1 - w) * beta, beta], needs w <= 1.
            `drop`: such a pair has weight 0 in the preference loss (an SFT term keeps it).
        margin_scale: `raw`: delta as the reward model gives it. `standardise`: delta divided by its root mean square
            over the pairs of the call, so that the sign stays and one pair alone is defined. A number T > 0: delta / T.

    Raises: ConfigError for settings outside these ranges.
    """

    beta: Positive = 0.1
    w: NonNegative = 0.5
    k: Positive = 0.5
    negative_margin: NegativeMargin = "floor"
    margin_scale: MarginScale = "raw"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.negative_margin == "signed" and self.w > 1:
            raise ConfigError(
                "w > 1 would make beta negative where the margin is negative",
                argument="w",
                given=f"w={self.w}, negative_margin=signed",
                expected="w <= 1, or negative_margin floor or drop",
            )

    @property
    def uses_call_statistics(self) -> bool:
        """Whether a pair's beta depends on the other pairs of the call."""
        return self.margin_scale == "standardise"

    @property
    def jumps_at_zero(self) -> str | None:
        """The setting that makes beta or keep jump where all margins are 0 up to rounding, if one does."""
        if self.margin_scale == "standardise":
            return "margin_scale=standardise"
        return "negative_margin=drop" if self.negative_margin == "drop" else None

    @cached_property
    def _rescale(self) -> Callable[[Tensor], Tensor]:
        if isinstance(self.margin_scale, str):
            return _SCALES[self.margin_scale]
        temperature = float(self.margin_scale)
        return lambda margin: margin / temperature

    @cached_property
    def _growth(self) -> Callable[[Tensor], Tensor]:
        return _NEGATIVE[self.negative_margin]

    def __call__(self, margin: Tensor) -> BetaOfMargin:
        """Give beta and keep, (P,) float32 each, for margins (P,); detached."""
        margin = margin.detach().float()
        growth = self._growth(self.k * self._rescale(margin))
        keep = (margin >= 0).float() if self.negative_margin == "drop" else torch.ones_like(margin)
        return BetaOfMargin(self.beta * (1 + self.w * growth), keep)


def _as_it_is(margin: Tensor) -> Tensor:
    return margin


def _unit_root_mean_square(margin: Tensor) -> Tensor:
    # Not (x - mean) / std: taking the mean away would change which response the reward model prefers.
    return margin / margin.square().mean().sqrt().clamp(min=torch.finfo(margin.dtype).tiny)


def _saturating(scaled: Tensor) -> Tensor:
    # expm1 keeps the small-margin end exact, where 1 - exp(-x) cancels in float32.
    return -torch.expm1(-scaled.clamp(min=0))


def _point_symmetric(scaled: Tensor) -> Tensor:
    return scaled.sign() * -torch.expm1(-scaled.abs())


_SCALES: dict[str, Callable[[Tensor], Tensor]] = {"raw": _as_it_is, "standardise": _unit_root_mean_square}
_NEGATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": _saturating,
    "signed": _point_symmetric,
    "drop": _saturating,
}
