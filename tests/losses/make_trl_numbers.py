"""Writes trl_numbers.json: losses that TRL's own trainers compute from eight fixed pairs.

Run where TRL is installed: `pip install trl==1.16.0`, then `python tests/losses/make_trl_numbers.py`.

`DPOTrainer._compute_loss`, `CPOTrainer.cpo_loss` and `RewardTrainer.compute_loss` run unchanged on stand-ins for the
trainer and the model, one pair at a time, because they return means (AOT, which compares a batch, on all of them).
Each response has its log-probability spread evenly over its tokens.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CHOSEN = [-12.5, -40.0, -3.25, -80.0, -7.0, -25.5, -1.0, -60.0]
REJECTED = [-14.0, -35.5, -9.75, -82.5, -7.0, -55.0, -30.0, -12.0]
REFERENCE_CHOSEN = [-13.0, -38.0, -4.0, -90.0, -6.5, -30.0, -2.5, -58.0]
REFERENCE_REJECTED = [-13.5, -37.0, -8.0, -80.0, -7.5, -50.0, -22.0, -20.0]
CHOSEN_TOKENS = [5, 16, 2, 31, 4, 9, 1, 20]
REJECTED_TOKENS = [7, 12, 5, 30, 4, 21, 11, 6]
MARGIN = [1.5, -0.5, 3.0, 0.0, 0.25, 2.0, 6.0, -4.0]


def main() -> None:
    """Run every TRL loss that has a counterpart and write the numbers."""
    dpo: dict[str, dict[str, Any]] = {
        "sigmoid": {},
        "hinge": {},
        "ipo": {},
        "robust": {"label_smoothing": 0.2},
        "sigmoid_norm": {"beta": 5.0},
        "wpo": {"loss_types": ["sigmoid"], "use_weighting": True},
        "mpo": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        "apo_zero": {},
        "apo_down": {},
        "exo_pair": {"label_smoothing": 0.2},
        "nca_pair": {},
    }
    numbers = {
        name: [dpo_loss([i], **{"loss_types": [name], **settings}) for i in range(8)] for name, settings in dpo.items()
    }
    numbers["kto"] = kto_losses(kl=1.5)
    numbers["aot_mean"] = [dpo_loss(range(8), loss_types=["aot"], label_smoothing=0.2)]
    per_token = [
        torch.tensor(sums, dtype=torch.float64) / torch.tensor(counts)
        for sums, counts in ((CHOSEN, CHOSEN_TOKENS), (REJECTED, REJECTED_TOKENS))
    ]
    numbers["simpo"] = cpo_losses(*per_token, loss_type="simpo", beta=2.0, simpo_gamma=1.0)
    # TRL's DPO trainer has no smoothed loss any more; its CPO trainer's is the same function of log-ratios.
    ratios = [
        torch.tensor(own) - torch.tensor(other)
        for own, other in ((CHOSEN, REFERENCE_CHOSEN), (REJECTED, REFERENCE_REJECTED))
    ]
    numbers["cdpo"] = cpo_losses(*ratios, loss_type="sigmoid", beta=0.1, label_smoothing=0.2)
    numbers["reward"] = [reward_loss(i, coefficient=None) for i in range(8)]
    numbers["reward_centred"] = [reward_loss(i, coefficient=0.01) for i in range(8)]
    inputs = {
        "chosen_logprob": CHOSEN,
        "rejected_logprob": REJECTED,
        "reference_chosen": REFERENCE_CHOSEN,
        "reference_rejected": REFERENCE_REJECTED,
        "chosen_tokens": CHOSEN_TOKENS,
        "rejected_tokens": REJECTED_TOKENS,
        "margin": MARGIN,
    }
    path = Path(__file__).with_name("trl_numbers.json")
    path.write_text(json.dumps({"trl": "1.16.0", "inputs": inputs, "losses": numbers}, indent=1) + "\n")


def dpo_loss(
    rows: Sequence[int],
    *,
    loss_types: list[str],
    loss_weights: list[float] | None = None,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    use_weighting: bool = False,
) -> float:
    """TRL's DPO loss of some pairs: their mean."""
    from trl import DPOTrainer  # pyright: ignore[reportMissingImports]

    counts = torch.tensor([column[i] for column in (CHOSEN_TOKENS, REJECTED_TOKENS) for i in rows])
    length = int(counts.max()) + 1
    mask = (torch.arange(length) >= 1) & (torch.arange(length) <= counts[:, None])
    sums = torch.tensor([column[i] for column in (CHOSEN, REJECTED) for i in rows], dtype=torch.float64)
    per_token = torch.where(mask[:, 1:], (sums / counts)[:, None], 0.0)
    nothing = torch.zeros_like(per_token)
    outputs = SimpleNamespace(
        log_probs=per_token, log_sum_sq_probs=nothing, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=stand_in_accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=loss_weights or [1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=use_weighting,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.ones(len(counts), length, dtype=torch.long),
        "attention_mask": torch.ones(len(counts), length, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": torch.tensor([REFERENCE_CHOSEN[i] for i in rows], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor([REFERENCE_REJECTED[i] for i in rows], dtype=torch.float64),
    }
    compute: Any = DPOTrainer._compute_loss
    return float(compute(trainer, lambda **_: outputs, inputs, False))


def kto_losses(*, kl: float) -> list[float]:
    """TRL's KTO loss of every chosen response, then of every rejected one, for a KL that the batch is said to have."""
    from trl import KTOTrainer  # pyright: ignore[reportMissingImports]

    found = []
    for sums, references, label in ((CHOSEN, REFERENCE_CHOSEN, True), (REJECTED, REFERENCE_REJECTED, False)):
        for own, reference in zip(sums, references, strict=True):
            per_token = torch.tensor([[own]], dtype=torch.float64)
            nothing = torch.zeros_like(per_token)
            outputs = SimpleNamespace(log_probs=per_token, entropy=nothing, mean_logits=nothing)
            trainer = SimpleNamespace(
                model=SimpleNamespace(training=False),
                accelerator=stand_in_accelerator(),
                aux_loss_enabled=False,
                precompute_ref_logps=True,
                calculate_KL=True,
                _compute_kl_logps=lambda model, batch: torch.tensor([kl], dtype=torch.float64),
                loss_type="kto",
                beta=0.1,
                desirable_weight=1.0,
                undesirable_weight=1.5,
                _metrics={"eval": defaultdict(list)},
                _total_train_tokens=0,
                _tp_size=1,
            )
            inputs = {
                "input_ids": torch.ones(1, 2, dtype=torch.long),
                "attention_mask": torch.ones(1, 2, dtype=torch.long),
                "completion_mask": torch.tensor([[0, 1]]),
                "label": torch.tensor([label]),
                "ref_logps": torch.tensor([reference], dtype=torch.float64),
                "ref_KL_logps": torch.zeros(1, dtype=torch.float64),
            }
            compute: Any = KTOTrainer._compute_loss
            found.append(float(compute(trainer, lambda outputs=outputs, **_: outputs, inputs, False)))
    return found


def cpo_losses(
    chosen: Tensor,
    rejected: Tensor,
    *,
    loss_type: str,
    beta: float,
    simpo_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> list[float]:
    """TRL's reference-free losses of all pairs, from what is compared in each."""
    from trl.experimental.cpo import CPOTrainer  # pyright: ignore[reportMissingImports]

    trainer = SimpleNamespace(
        accelerator=stand_in_accelerator(),
        alpha=0.0,
        loss_type=loss_type,
        beta=beta,
        simpo_gamma=simpo_gamma,
        label_smoothing=label_smoothing,
    )
    compute: Any = CPOTrainer.cpo_loss
    return compute(trainer, chosen.double(), rejected.double())[0].tolist()


def reward_loss(i: int, *, coefficient: float | None) -> float:
    """TRL's reward loss of pair i, whose rewards are margin / 2 + 0.3 and -margin / 2 + 0.3."""
    from trl import RewardTrainer  # pyright: ignore[reportMissingImports]

    logits = torch.tensor([[MARGIN[i] / 2 + 0.3], [-MARGIN[i] / 2 + 0.3]], dtype=torch.float64)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=stand_in_accelerator(),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    compute: Any = RewardTrainer.compute_loss
    return float(compute(trainer, lambda **_: SimpleNamespace(logits=logits), {"attention_mask": torch.ones(2, 1)}))


def stand_in_accelerator() -> SimpleNamespace:
    """One process: gathering is the identity."""

    def identity(value: Tensor) -> Tensor:
        return value

    return SimpleNamespace(gather=identity, gather_for_metrics=identity, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
