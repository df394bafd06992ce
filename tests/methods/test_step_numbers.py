"""A step's numbers do not depend on how its items are cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.methods.step_numbers import StepRecord

ITEMS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12)


def alone(tensor: torch.Tensor, operation: str) -> torch.Tensor:
    return tensor


def reduce(items: list[tuple[float, float]], cut: int) -> dict[str, float]:
    record = StepRecord()
    for part in (items[:cut], items[cut:]):
        record.add("x", torch.tensor([v for v, _ in part]), torch.tensor([w for _, w in part]), spread=True)
    return record.reduce(alone)


@given(items=ITEMS, cut=st.integers(0, 12))
def test_cutting_changes_nothing(items: list[tuple[float, float]], cut: int) -> None:
    assert reduce(items, cut) == pytest.approx(reduce(items, len(items)), rel=1e-3, abs=1e-3)


@given(items=ITEMS)
def test_mean_and_range_are_of_the_items_that_weigh(items: list[tuple[float, float]]) -> None:
    found = reduce(items, 0)
    weighing = [(value, weight) for value, weight in items if weight > 0]
    if not weighing:
        assert found == {}
        return
    values = [value for value, _ in weighing]
    mean = sum(v * w for v, w in weighing) / sum(w for _, w in weighing)
    assert found["x"] == pytest.approx(mean, rel=1e-3, abs=1e-3)
    assert (found["x_min"], found["x_max"]) == pytest.approx((min(values), max(values)))


@given(items=ITEMS, level=st.sampled_from([0.0, 0.1, 1e3, -1e4]))
def test_the_spread_is_numpys_at_any_level(items: list[tuple[float, float]], level: float) -> None:
    """A small spread at a high level has left nothing of itself in the mean of squares in float32."""
    shifted = [(float(np.float32(value / 1000 + level)), weight) for value, weight in items]
    values, weights = (np.array([row[i] for row in shifted if row[1] > 0]) for i in (0, 1))
    found = reduce(shifted, len(items) // 2)
    if len(values):
        middle = np.average(values, weights=weights)
        spread = np.sqrt(np.average((values - middle) ** 2, weights=weights))
        assert (found["x"], found["x_std"]) == (pytest.approx(middle), pytest.approx(spread, rel=1e-6, abs=1e-9))


def test_an_item_without_weight_may_be_infinite() -> None:
    record = StepRecord()
    record.add("x", torch.tensor([1.0, torch.inf, torch.nan]), torch.tensor([1.0, 0.0, 0.0]))
    assert record.reduce(alone) == {"x": 1.0}


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="x: values"):
        StepRecord().add("x", torch.ones(2), torch.ones(2, 1))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
def test_ranks_with_and_without_items_reduce_the_same_tensors(weights: list[float]) -> None:
    """A rank whose groups only fill up the step has no item of weight; the others reduce with it all the same."""
    seen = []

    def watched(tensor: torch.Tensor, operation: str) -> torch.Tensor:
        seen.append((operation, tensor.dtype, tuple(tensor.shape)))
        return tensor

    record = StepRecord()
    for name in ("beta", "margin"):
        record.add(name, torch.tensor([0.5, 2.0]), torch.tensor(weights), spread=True)
    record.reduce(watched)
    assert seen == [("sum", torch.float64, (2, 2)), ("sum", torch.float64, (2,)), ("max", torch.float64, (2, 2))]
