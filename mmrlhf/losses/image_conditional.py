"""mDPO: DPO, plus the wish that a chosen response be likelier with its image than with a damaged one.

Follows: mDPO (arXiv 2406.11839), its objective L = L_DPO + L_CoPO + L_AncPO: DPO's loss (arXiv 2305.18290, equation 7);
conditional preference optimization, -log sigmoid(beta (log-ratio given the image - log-ratio given the damaged one));
the reward anchor, -log sigmoid(beta * log-ratio of the chosen response - shift). The authors' code (luka-group/mDPO)
sums the same three.
Differs in: the three terms have weights (the paper: 1 each); a query without media has no image term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmrlhf.losses.links import logistic
from mmrlhf.losses.objective import Objective, check_shapes
from mmrlhf.ranges import Finite, Natural, NonNegative


@dataclass(frozen=True, kw_only=True)
class MDPO(Objective):
    """DPO on pairs; of every chosen response, `image_weight` * image_conditional + `anchor_weight` * anchor.

    Args:
        image_weight, anchor_weight: >= 0; with both 0 it is DPO.
        anchor_shift: what a chosen response's implicit reward has to reach.
        damage: how the damaged image is made: `crop` or `blank` (see `mmrlhf.media.damage`).
        damage_seed: draws the crop, once for each query.
    """

    image_weight: NonNegative = 1.0
    anchor_weight: NonNegative = 1.0
    anchor_shift: Finite = 0.0
    damage: Literal["crop", "blank"] = "crop"
    damage_seed: Natural = 0


def image_conditional(log_ratio: Tensor, damaged_log_ratio: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta * (log-ratio with the image - log-ratio with the damaged or absent image)).

    log_ratio, damaged_log_ratio: (P,), log policy - log reference of the chosen response. Returns (P,).
    """
    check_shapes({"log_ratio": log_ratio, "damaged_log_ratio": damaged_log_ratio})
    return logistic(beta * (log_ratio.float() - damaged_log_ratio.float()))


def anchor(log_ratio: Tensor, *, beta: float, shift: float = 0.0) -> Tensor:
    """-log sigmoid(beta * log_ratio - shift): keeps the chosen response's likelihood from falling; (P,) to (P,)."""
    return logistic(beta * log_ratio.float() - shift)
