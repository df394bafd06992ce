"""The roomy cache holds what the stock cache holds, whatever is appended and whichever rows are kept."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma3TextConfig, Qwen2Config
from transformers.cache_utils import DynamicLayer

from mmrlhf.models.cache import SPARE_TOKENS, RoomyLayer, build_cache, join_caches

appends = st.integers(1, SPARE_TOKENS + 5)
selections = st.lists(st.integers(0, 2**16), min_size=1, max_size=4)


@given(st.lists(st.one_of(appends, selections), min_size=1, max_size=8))
def test_equals_the_stock_layer(moves: list[int | list[int]]) -> None:
    """Tokens are appended (int) and rows selected, repeated or reordered (list), in any order."""
    stock, roomy = DynamicLayer(), RoomyLayer()
    rows, seed = 3, 0
    for move in [2, *moves]:
        if isinstance(move, list):
            chosen = torch.tensor([number % rows for number in move])
            rows = len(chosen)
            stock.batch_select_indices(chosen)
            roomy.batch_select_indices(chosen)
        else:
            seed += 1
            states = torch.randn((2, rows, 2, move, 4), generator=torch.Generator().manual_seed(seed))
            for expected, found in zip(stock.update(*states), roomy.update(*states), strict=True):
                assert torch.equal(expected, found)
        assert torch.equal(stock.keys, roomy.keys) and torch.equal(stock.values, roomy.values)
        assert stock.get_seq_length() == roomy.get_seq_length()


def test_appending_within_the_room_moves_nothing() -> None:
    """The point of it: keys stay where they are while there is room."""
    layer = RoomyLayer()
    states = torch.zeros(1, 1, 1, 4)
    places = set()
    for _ in range(SPARE_TOKENS):
        layer.update(states, states)
        places.add(layer.keys.data_ptr())
    assert len(places) == 1


def test_joined_rows_are_padded_behind_their_tokens_and_one_alone_stays_where_it_is() -> None:
    config = Qwen2Config(num_hidden_layers=1)
    caches = [build_cache(config) for _ in range(2)]
    rows = [torch.randn(2, 1, 2, length, 4) for length in (3, 5)]
    for cache, row in zip(caches, rows, strict=True):
        cache.update(*row, layer_idx=0)
    alone = caches[0].layers[0].keys
    assert join_caches(caches[:1]).layers[0].keys is alone and torch.equal(alone, rows[0][0])
    keys = join_caches(caches).layers[0].keys
    assert caches[1].layers[0].keys is None, "what is joined is not held twice"
    assert (
        torch.equal(keys[0, :, :3], rows[0][0, 0]) and not keys[0, :, 3:].any() and torch.equal(keys[1], rows[1][0, 0])
    )


def test_every_attention_layer_keeps_everything() -> None:
    """Sliding windows are the business of the masks: a stock sliding layer would count padding and forget tokens."""
    sliding = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    for config in (sliding, Qwen2Config(num_hidden_layers=2)):
        cache = build_cache(config)
        assert {type(layer) for layer in cache.layers} == {RoomyLayer} and isinstance(cache, DynamicCache)
