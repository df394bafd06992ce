"""The methods with settings under which a wrong normalisation would show."""

from __future__ import annotations

import torch
from torch import nn

from mmrlhf.methods.optim import OptimSettings
from mmrlhf.methods.packed_module import PackedModule
from mmrlhf.methods.preference import PreferenceModule
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tokens.packing import pack_groups

METHODS = ("sft", "reward", "preference", "step_statistics")

# Without clipping the gradient's norm is logged as it is; AdamW alone would hide a wrong scale.
OPTIM = OptimSettings(lr=1e-2, weight_decay=0.1, max_grad_norm=None)


def build_method(name: str, model: nn.Module, total_steps: int) -> PackedModule:
    """Make a module: sft, reward, preference, or step_statistics (preference with betas that need the step)."""
    if name == "sft":
        from mmrlhf.methods.sft import SFTModule

        return SFTModule(model, OPTIM, total_steps=total_steps)
    if name == "reward":
        from mmrlhf.methods.critique_reward import CritiqueRewardModule, RewardWeights

        weights = RewardWeights(critique=1.0, score=0.5, tie=0.3, centring=0.1)
        return CritiqueRewardModule(model, weights, OPTIM, total_steps=total_steps)
    from mmrlhf.losses.margin_controls import ShuffledMargin
    from mmrlhf.losses.mmdpo import MMDPO
    from mmrlhf.methods.preference import PairScheme, PreferenceModule

    objective = MMDPO(sft_weight=0.1) if name == "preference" else ShuffledMargin(margin_scale="standardise")
    return PreferenceModule(model, objective, PairScheme(), OPTIM, total_steps=total_steps)


def total(module: PreferenceModule, groups: list, num_micro: int) -> float:
    """The step's mean loss over micro-batches, with everything counted as in training."""
    batches = [pack_groups(groups[start::num_micro]) for start in range(num_micro)]
    counts = module.prepare(batches)
    sums = [sum(module.loss_sums(b, c, StepRecord()).values()) for b, c in zip(batches, counts, strict=True)]
    return float(torch.stack(sums).sum().detach()) / sum(float(c.divisors["preference"]) for c in counts)  # type: ignore[arg-type]
