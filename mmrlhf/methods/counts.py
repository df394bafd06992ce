"""What a micro-batch puts into a step's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.losses.objective import PairScale
from mmrlhf.tensors import PairIndex


@dataclass(frozen=True)
class Counts:
    """What one micro-batch puts into a step's loss, known without a forward.

    divisors: for each part of the loss, a scalar that is summed over the step and divides that part's sum;
    pairs: the pairs that are compared; ties: pairs of equal rank, for methods that use them; scale: the objective's
    say on each pair where it needs the whole step to know it; kl: the step's mean log-ratio, for methods that compare
    with it, a scalar.
    """

    divisors: Mapping[str, Tensor]
    pairs: PairIndex | None = None
    ties: PairIndex | None = None
    scale: PairScale | None = None
    kl: Tensor | None = None

    def to(self, device: torch.device) -> Counts:
        """Move everything to a device."""
        divisors = {name: value.to(device, torch.float32) for name, value in self.divisors.items()}
        kl = None if self.kl is None else self.kl.to(device)
        return replace(self, divisors=divisors, pairs=_move(self.pairs, device), ties=_move(self.ties, device), kl=kl)


def _move(pairs: PairIndex | None, device: torch.device) -> PairIndex | None:
    if pairs is None:
        return None
    return PairIndex(*(part.to(device) for part in (pairs.chosen, pairs.rejected, pairs.group, pairs.weight)))
