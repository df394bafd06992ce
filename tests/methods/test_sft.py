"""Supervised loss: a mean over label tokens of the responses that count."""

from __future__ import annotations

import pytest
import torch
from stand_ins.packed_toy import ToyModel, make_group

from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.sft import SFTModule, best_of_group
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tokens.packing import pack_groups

NAN = float("nan")


def loss(groups: list, responses: str) -> torch.Tensor:
    module = SFTModule(ToyModel(), OptimSettings(), total_steps=1, responses=responses)  # type: ignore[arg-type]
    batch = pack_groups(groups)
    counts = module.count(batch)
    return module.loss_sums(batch, counts, StepRecord())["nll"] / counts.divisors["nll"]


def test_loss_is_the_mean_over_label_tokens() -> None:
    groups = [make_group(1), make_group(2, image=True)]
    outputs = ToyModel()(pack_groups(groups))
    expected = -outputs.logprob.sum() / outputs.num_tokens.sum()
    torch.testing.assert_close(loss(groups, "all"), expected)


def test_best_takes_the_best_rank_with_ties() -> None:
    groups = [make_group(1, (2, 1, 1)), make_group(2, (3, 2)), make_group(3, (NAN, NAN)), make_group(4, (NAN, 2, 5))]
    batch = pack_groups(groups)
    assert best_of_group(batch).tolist() == [0, 1, 1, 0, 1, 1, 1, 0, 1, 0]
    outputs = ToyModel()(batch)
    kept = best_of_group(batch)
    expected = -(kept * outputs.logprob).sum() / (kept * outputs.num_tokens).sum()
    torch.testing.assert_close(loss(groups, "best"), expected)


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="all or best"):
        SFTModule(ToyModel(), OptimSettings(), total_steps=1, responses="worst")  # type: ignore[arg-type]
