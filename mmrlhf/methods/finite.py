"""A step whose loss or gradient is not finite is not taken: all ranks stop before the update and name the queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ModelError
from mmrlhf.processes import gather_ranks

# What decides about an update; every rank has the same value of both.
DECISIVE = ("loss", "gradient_norm")
_SHOWN = 20


def is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether a step's loss and gradient are finite; the same answer on every rank."""
    return all(math.isfinite(metrics[name]) for name in DECISIVE)


def finite_gradients(model: nn.Module) -> bool:
    """Whether all gradients (of a sharded model: this rank's shards) are finite."""
    gradients = [_local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def stop(metrics: Mapping[str, float], where: str, culprits: Sequence[str], step_keys: Iterable[str]) -> None:
    """Raise the same error on every rank; every rank has to call this.

    Args:
        metrics: of the step; all that are not finite are named.
        where: stage and step.
        culprits: keys of this rank's micro-batches that are not finite by themselves; step_keys: of all of them.

    Raises:
        ModelError: always.
    """
    ranks = gather_ranks((list(culprits), list(step_keys)))
    found = sorted({key for own, _ in ranks for key in own}) or sorted({key for _, own in ranks for key in own})
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    numbers = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    raise ModelError(
        "a step gave numbers that are not finite, and was not taken",
        where=f"{where}; keys of the queries: {', '.join(found[:_SHOWN])}{more}",
        given=", ".join(f"{name}={value}" for name, value in sorted(numbers.items())),
        expected="finite losses and gradients",
        fix="look at these queries; if they are fine, lower the learning rate, or try model.settings.precision=float32."
        " The run goes on from its last checkpoint when it is started again",
    )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
