"""The share of a text that says again what it has said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.metrics.repetition import repeated_share

WORDS = st.lists(st.sampled_from("red blue green circle square".split()), max_size=30)


def test_by_hand() -> None:
    """`a b c d a b c d`: five runs of four words, of which the last is the first."""
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("a b c d, A b  c d!") == pytest.approx(1 / 5)
    assert repeated_share("one two three") == repeated_share("") == 0
    assert repeated_share("red " * 40) == pytest.approx(1 - 1 / 37)


def test_scripts_without_spaces() -> None:
    """Twelve signs, nine runs of four; the last three are the first three."""
    assert repeated_share("图中有两个圆图中有两个圆") == pytest.approx(3 / 9)
    assert repeated_share("图中有两个圆和一个方块") == 0


@settings(max_examples=25)
@given(words=WORDS)
def test_saying_it_all_again_repeats_each_of_its_runs(words: list[str]) -> None:
    once, twice = repeated_share(" ".join(words)), repeated_share(" ".join(words + words))
    assert 0 <= once < 1
    if len(words) >= 4:
        assert twice * (2 * len(words) - 3) >= len(words) - 3 - 1e-9
