"""Laws of the schedule, the parameter groups, and gradients over ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.packed_toy import ToyModel

from mmrlhf.errors import ConfigError
from mmrlhf.methods import optim
from mmrlhf.methods.optim import OptimSettings, average_replicated_gradients, build_optimizer, schedule_factor


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "constant", "linear"]),
)
def test_schedule_rises_then_falls_and_stays_a_share(total: int, warmup: float, schedule: str) -> None:
    settings = OptimSettings(warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    factors = [schedule_factor(step, total, settings) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_schedule_by_hand() -> None:
    settings = OptimSettings(warmup=0.2, schedule="linear")
    # 10 steps: two of warm-up (1/2, 1), then 8 from 1 towards 0.
    expected = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [schedule_factor(step, 10, settings) for step in range(10)] == pytest.approx(expected)


def test_only_trainable_matrices_decay() -> None:
    model = ToyModel()
    frozen = model.backbone.lm_head.weight.requires_grad_(False)
    optimizer, _ = build_optimizer(model, OptimSettings(weight_decay=0.1), 10)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert id(frozen) not in decay
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0)


def test_a_head_has_a_rate_of_its_own_where_asked() -> None:
    """The schedule multiplies both; the first group, whose rate is logged, is the backbone's."""
    model = ToyModel()
    optimizer, _ = build_optimizer(model, OptimSettings(lr=1e-6, head_lr=1e-4, warmup=0.5), 4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    of_head = {id(p) for p in model.score_head.parameters()}
    assert rates.keys() == {id(p) for p in model.parameters()}
    assert all(rate == pytest.approx((1e-4 if p in of_head else 1e-6) / 2) for p, rate in rates.items())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-7)
    same, _ = build_optimizer(model, OptimSettings(lr=1e-6), 4)
    assert len(same.param_groups) == 2
    with pytest.raises(ConfigError, match="head_lr"):
        OptimSettings(head_lr=0.0)


def test_clipping_scales_to_the_norm() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    assert float(optim.clip_gradients(parameters, None)) == pytest.approx(5.0)
    assert float(optim.clip_gradients(parameters, 1.0)) == pytest.approx(5.0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([[0.8]]))


@pytest.mark.parametrize("bucket", [1, 3, 100])
def test_buckets_change_nothing(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "ALL_REDUCE_NUMEL", bucket)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2,), (1, 3), (2, 2))]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    average_replicated_gradients(parameters, lambda flat: flat / 2 + 1)
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None and bool((parameter.grad == number / 2 + 1).all())


@pytest.mark.parametrize("change", [{"lr": 0}, {"warmup": 1.5}, {"schedule": "step"}])
def test_impossible_settings_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimSettings(**change)


@pytest.mark.parametrize("off", [0, 0.0, None])
def test_a_largest_norm_of_zero_is_off(off: float | None) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optim.clip_gradients([parameter], off) == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]
