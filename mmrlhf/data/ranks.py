"""What every rank knows, brought together."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed

T = TypeVar("T")


def gather_ranks(value: T) -> list[T]:
    """Every rank's value, in the order of ranks; every rank has to call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
