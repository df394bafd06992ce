"""mDPO as a method: without its own terms it is DPO; they follow the formula; text alone has no image term."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.methods_under_test import total
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.errors import ConfigError
from mmrlhf.losses.dpo import DPO
from mmrlhf.losses.image_conditional import MDPO
from mmrlhf.media.damage import DAMAGED
from mmrlhf.methods.image_conditional import ImageConditionalModule
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.packing import pack_groups


def build(objective: MDPO, **options: object) -> ImageConditionalModule:
    return ImageConditionalModule(ToyModel(), objective, PairScheme(), OptimSettings(), total_steps=1, **options)


def shown(number: int, ranks: tuple[float, ...] = (1, 2, 3)) -> EncodedGroup:
    """A group with an image, a damaged one, and a reference's view of both."""
    group = make_group(number, ranks, image=True)
    damaged = torch.rand(3, generator=torch.Generator().manual_seed(100 + number))
    columns = {**group.columns, "reference_damaged_logprob": group.columns["reference_logprob"] - 0.5}
    return replace(group, media={**group.media, DAMAGED + "pixels": damaged}, columns=columns)


def told(number: int) -> EncodedGroup:
    """A group of text alone."""
    group = make_group(number, (1, 2))
    return replace(group, columns={**group.columns, "reference_damaged_logprob": group.columns["reference_logprob"]})


def parts(module: ImageConditionalModule, groups: list[EncodedGroup]) -> dict[str, float]:
    batch = pack_groups(groups)
    counts = module.count(batch)
    sums = module.loss_sums(batch, counts, StepRecord())
    return {name: float((sums[name] / counts.divisors[name]).detach()) for name in module.part_weights}


def test_without_its_terms_it_is_dpo() -> None:
    groups = [shown(1), shown(2)]
    pairwise = PreferenceModule(ToyModel(), DPO(), PairScheme(), OptimSettings(), total_steps=1)
    module = build(MDPO(image_weight=0.0, anchor_weight=0.0))
    assert set(module.part_weights) == {"preference"}
    assert parts(module, groups)["preference"] == pytest.approx(total(pairwise, groups, 1), rel=1e-5)


def test_terms_by_hand() -> None:
    """One pair: image = softplus(-beta (ratio - damaged ratio)), anchor = softplus(shift - beta ratio)."""
    group = shown(1, (1, 2))
    batch = pack_groups([group])
    own = ToyModel()(batch).logprob[0] - batch.columns["reference_logprob"][0]
    spoilt = replace(batch, media=({"pixels": group.media[DAMAGED + "pixels"]},))
    without = ToyModel()(spoilt).logprob[0] - batch.columns["reference_damaged_logprob"][0]
    found = parts(build(MDPO(beta=0.7, anchor_shift=0.2)), [group])
    softplus = torch.nn.functional.softplus
    assert found["image"] == pytest.approx(float(softplus(-0.7 * (own - without)).detach()), rel=1e-5)
    assert found["anchor"] == pytest.approx(float(softplus(0.2 - 0.7 * own).detach()), rel=1e-5)


def test_a_picture_that_changes_nothing_costs_log_two() -> None:
    group = shown(1)
    same = replace(group, media={**group.media, DAMAGED + "pixels": group.media["pixels"]})
    columns = {**same.columns, "reference_damaged_logprob": same.columns["reference_logprob"]}
    assert parts(build(MDPO()), [replace(same, columns=columns)])["image"] == pytest.approx(0.693147, rel=1e-5)


def test_text_alone_has_no_image_term() -> None:
    alone, both = parts(build(MDPO()), [shown(1)]), parts(build(MDPO()), [shown(1), told(2)])
    assert both["image"] == pytest.approx(alone["image"], rel=1e-5)
    assert both["anchor"] != pytest.approx(alone["anchor"], rel=1e-5)


def test_gradients_reach_the_policy_through_the_damaged_picture() -> None:
    module = build(MDPO(anchor_weight=0.0))
    batch = pack_groups([shown(1)])
    module.loss_sums(batch, module.count(batch), StepRecord())["image"].backward()
    grad = module.model.backbone.model["multi_modal_projector"].weight.grad
    assert grad is not None and grad.abs().sum() > 0


def test_a_table_without_damaged_media_is_named() -> None:
    with pytest.raises(ConfigError, match="damaged media"):
        build(MDPO()).count(pack_groups([make_group(1, image=True)]))
