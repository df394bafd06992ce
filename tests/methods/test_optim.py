"""Laws of the schedule, the parameter groups, and gradients over ranks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.packed_toy import ToyModel
from torch import nn

from mmrlhf.errors import ConfigError
from mmrlhf.methods import optim
from mmrlhf.methods.optim import OptimSettings, average_replicated_gradients, build_optimizer, schedule_factor
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings


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


def test_every_part_has_a_rate_and_a_decay_of_its_own(tiny_folders: dict[str, Path]) -> None:
    """Vision, projector, language, head and adapters; what is not set is as all the rest."""
    settings = ModelSettings(vision="full", projector="full", language="lora", lora_rank=2)
    backbone, _ = load_backbone(tiny_folders["internvl"], settings)
    model = PackedModel(backbone, settings, build_head("tanh2", 64))
    chosen = {"vision_lr": 1e-5, "projector_weight_decay": 0.3, "adapter_lr": 1e-3, "head_lr": 1e-2}
    optim_settings = OptimSettings(lr=1e-4, weight_decay=0.1, warmup=0.0, schedule="constant", **chosen)
    optimizer, _ = build_optimizer(model, optim_settings, 4)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    seen = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found
            continue
        part = next(
            part
            for part, mark in (
                ("adapter", ".lora_"), ("head", "score_head."), ("vision", "vision_tower"), ("projector", "multi_"),
            )
            if mark in name
        )  # fmt: skip
        rate = {"adapter": 1e-3, "head": 1e-2, "vision": 1e-5, "projector": 1e-4}[part]
        decay = (0.3 if part == "projector" else 0.1) if parameter.ndim >= 2 else 0.0
        assert found[id(parameter)] == (rate, decay), name
        seen.add(part)
    assert len(seen) == 4


def test_eight_bits_of_state_train_alike_and_go_on_exactly() -> None:
    """Moments of a byte each, weights close to AdamW's; saved and loaded on the way, the same to the last bit."""
    pytest.importorskip("bitsandbytes")

    def train(name: str, reload_at: int = -1) -> tuple[torch.Tensor, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(128, 64)
        optimizer, scheduler = build_optimizer(model, OptimSettings(name=name, lr=1e-2, weight_decay=0.1), 8)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        for step in range(8):
            if step == reload_at:
                saved = io.BytesIO()
                torch.save((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()), saved)
                saved.seek(0)
                states = torch.load(saved, weights_only=False)
                model = nn.Linear(128, 64)
                optimizer, scheduler = build_optimizer(model, OptimSettings(name=name, lr=1e-2, weight_decay=0.1), 8)  # type: ignore[arg-type]
                for each, state in zip((model, optimizer, scheduler), states, strict=True):
                    each.load_state_dict(state)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            scheduler.step()
        return model.weight.detach(), optimizer

    plain, _ = train("adamw")
    compact, optimizer = train("adamw_8bit")
    state = next(state for state in optimizer.state.values() if state["state1"].ndim == 2)
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    kept = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))  # its tables are shared
    assert kept == OptimSettings(name="adamw_8bit").moments * compact.numel()
    start = nn.Linear(128, 64)
    torch.manual_seed(0)
    start.reset_parameters()
    assert 0 < (compact - plain).norm() < 0.05 * (plain - start.weight).norm()
    assert torch.equal(train("adamw_8bit", reload_at=4)[0], compact)


def test_eight_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mmrlhf\[quantized\]'") as caught:
        OptimSettings(name="adamw_8bit")
    assert caught.value.argument == "name"


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
