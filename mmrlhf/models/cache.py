"""A key-value cache that appends in place.

The stock cache concatenates: every decoded token copies all keys and values of all rows. This one keeps spare room
behind them and copies only when that is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 64


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, H, S, D), views of buffers with room for more tokens."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens (B, H, N, D); returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            spare = max(SPARE_TOKENS, end // 4)
            self._room = (
                _with_room(self.keys, key_states, start, end + spare),
                _with_room(self.values, value_states, start, end + spare),
            )
        keys, values = self._room
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def replace_rows(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Hold these rows (1, H, S, D) instead, all as long as the longest; the room goes."""
        self.keys, self.values, self._room = _side_by_side(keys), _side_by_side(values), None

    def release(self) -> None:
        """Hold nothing any more."""
        self.keys = self.values = self._room = None
        self.is_initialized = False

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep, repeat or reorder rows; the room goes, and comes back with the next token."""
        super().batch_select_indices(indices)
        self._room = None


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """[(1, H, S, D)] -> (B, H, longest S, D)."""
    longest = max(row.shape[-2] for row in rows)
    return torch.cat([pad(row, (0, 0, 0, longest - row.shape[-2])) for row in rows])


def _with_room(old: Tensor | None, new: Tensor, length: int, capacity: int) -> Tensor:
    """The first `length` tokens of `old` in a buffer (B, H, capacity, D)."""
    buffer = torch.empty((*new.shape[:-2], capacity, new.shape[-1]), dtype=new.dtype, device=new.device)
    if old is not None and length:
        buffer[..., :length, :] = old
    return buffer


def build_cache(config: PreTrainedConfig) -> DynamicCache:
    """The stock cache of a model, with its attention layers replaced by roomy ones.

    Sliding-window layers keep everything, too: the stock ones count padding as part of the window, and here the masks
    (`mmrlhf.models.masks`) count it.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if isinstance(layer, DynamicLayer) else layer for layer in cache.layers]
    return cache


def join_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One cache with the rows of several, each of one row; shorter ones are padded with zeros behind their tokens.

    It takes the layers from the others one after another, so that no more than one layer is held twice.
    """
    joined = caches[0]
    if len(caches) == 1:
        return joined
    for number, layer in enumerate(joined.layers):
        rows = [row for cache in caches if isinstance(row := cache.layers[number], RoomyLayer)]
        if isinstance(layer, RoomyLayer):
            layer.replace_rows([cast(Tensor, row.keys) for row in rows], [cast(Tensor, row.values) for row in rows])
            for row in rows[1:]:
                row.release()
    return joined
