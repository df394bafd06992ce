"""What a validation finds: its pairs in one order, how many of them are right, and the method's own means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmrlhf.methods.heldout import PairScores, Validation

SCORES = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
PAIRS = st.lists(st.tuples(st.sampled_from("abc"), SCORES, SCORES), max_size=6)


def alone(tensor: Tensor, operation: str) -> Tensor:
    """One rank's reduction."""
    return tensor


@given(st.lists(PAIRS, max_size=4))
def test_pairs_of_all_micro_batches_are_counted_and_kept(batches: list[list[tuple[str, float, float]]]) -> None:
    """A tie is wrong; however the pairs come in micro-batches, their order is that of their keys."""
    found = Validation(torch.device("cpu"))
    for batch in batches:
        found.add(PairScores(*(tuple(column) for column in zip(*batch, strict=True)) if batch else ((), (), ())))
    pairs = sorted(pair for batch in batches for pair in batch)
    scores, metrics = found.scores(), found.metrics(alone)
    if not pairs:
        assert scores is None and metrics == {}
        return
    assert scores is not None and list(zip(scores.keys, scores.chosen, scores.rejected, strict=True)) == pairs
    right = sum(chosen > rejected for _, chosen, rejected in pairs)
    assert metrics == {"accuracy": pytest.approx(right / len(pairs))}


def test_accuracy_is_of_the_annotators_pairs_alone() -> None:
    """A method records that of the pairs it trains on; where it scores none of the annotators', there is none."""
    found = Validation(torch.device("cpu"))
    found.record.add("accuracy", torch.tensor([1.0]))
    found.record.add("loss_preference", torch.tensor([0.25, 0.75]))
    assert found.metrics(alone) == {"loss_preference": 0.5}
    found.add(PairScores(("a",), (1.0,), (2.0,)))
    assert found.metrics(alone) == {"loss_preference": 0.5, "accuracy": 0.0}
