"""Before the first update a policy is its reference: is it the model that the reference's table was made with?

Every log-ratio is then 0 and DPO's loss ln 2, but for what another packing of the same tokens changes in floating
point. That is measured here, on the first micro-batch, and not assumed: the same responses are scored once more in a
row that holds every second one of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrlhf.errors import DataError
from mmrlhf.processes import gather_ranks
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.packing import select_responses

log = logging.getLogger(__name__)

# A log-ratio that is rounding adds up like a random walk over a response's tokens: nats for each square root of tokens.
# What is measured on a few responses may be small by chance: hence a floor, and a factor.
FLOOR = {"float32": 1e-3, "bf16": 2e-2}
FACTOR = 6.0


@dataclass(frozen=True)
class Departure:
    """Of one response: log policy - log reference, and the change by another packing (nan: not packed otherwise)."""

    key: str
    response_hash: str
    tokens: float
    log_ratio: float
    noise: float

    @property
    def relative(self) -> float:
        """The log-ratio for each square root of tokens."""
        return self.log_ratio / math.sqrt(max(self.tokens, 1.0))


@torch.no_grad()
def measure(model: Any, batch: PackedBatch, reference: Tensor) -> list[Departure]:
    """Score a micro-batch's responses twice, without dropout; two forwards on every rank, whatever it holds.

    Args:
        reference: the table's log-probabilities (R,).
    """
    training = model.training
    model.eval()
    try:
        whole = model(batch)
        kept = _every_second(batch)
        part = model(select_responses(batch, kept))
    finally:
        model.train(training)
    noise = torch.full_like(whole.logprob, torch.nan)
    noise[kept] = (part.logprob - whole.logprob[kept]).to(noise)
    keys = [batch.keys[group] for group in batch.group_of_response.tolist()]
    ratios = (whole.logprob.float() - reference.float()).tolist()
    columns = (keys, batch.response_hashes, whole.num_tokens.tolist(), ratios, noise.tolist())
    return [Departure(*row) for row in zip(*columns, strict=True)]


def require_same_model(own: Sequence[Departure], *, precision: str, where: str) -> None:
    """Stop all ranks where the table and the policy are two models; every rank has to call this.

    Raises:
        DataError: the log-ratios are beyond what packing explains, or not finite.
    """
    every = [one for rank in gather_ranks(list(own)) for one in rank]
    found = _root_mean_square([one.relative for one in every])
    noise = _root_mean_square(
        [one.noise / math.sqrt(max(one.tokens, 1.0)) for one in every if not math.isnan(one.noise)]
    )
    limit = max(FLOOR[precision], FACTOR * noise)
    log.info(
        "before the first step the policy is %.2g nats per root token off its reference's table; packing explains %.2g",
        found, noise,
    )  # fmt: skip
    if found <= limit:
        return
    worst = max(every, key=lambda one: abs(one.relative) if math.isfinite(one.relative) else math.inf)
    raise DataError(
        "the table of reference log-probabilities was made with another checkpoint, other weights or another precision "
        "than the policy that is to be trained: before the first update, every log-ratio must be 0 and DPO's loss ln 2",
        where=f"{where}; worst: key {worst.key}, response hash {worst.response_hash}",
        given=f"log-ratio of that response {worst.log_ratio:.4g} nats over {worst.tokens:.0f} tokens; {found:.3g} nats "
        f"per square root of tokens over {len(every)} responses",
        expected=f"at most {limit:.3g}: {FACTOR:g} times what another packing changes here ({noise:.2g}), and at least "
        f"{FLOOR[precision]:g} in {precision}",
        fix="let the stage `reference` make the table again from this checkpoint, or start from the checkpoint that "
        "the table was made with",
    )


def _every_second(batch: PackedBatch) -> Tensor:
    """The first, third, ... response of every group (R,) bool."""
    group = batch.group_of_response
    number = torch.arange(len(group), device=group.device)
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, number, "amin")
    return (number - first[group]) % 2 == 0


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0
