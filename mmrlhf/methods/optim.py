"""Optimizer, learning-rate schedule and gradient handling shared by every training method.

All of it works on plain parameters and on FSDP2's sharded ones (DTensor); the two never enter one fused call together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import parts
from mmrlhf.models.settings import PARTS
from mmrlhf.ranges import NonNegative, Positive, Share, ShareBelowOne, check_fields

# What may have a learning rate and a weight decay of its own.
OPTIM_PARTS = (*PARTS, "head", "adapter")
# Gradients of replicated parameters are averaged over ranks in pieces of this many numbers.
ALL_REDUCE_NUMEL = 16 * 1024 * 1024


@dataclass(frozen=True)
class OptimSettings:
    """AdamW and its schedule.

    Args:
        name: `adamw`, or `adamw_8bit`: its moments take 8 bits each (bitsandbytes, arXiv 2110.02861; those of tensors
            with fewer than 4,096 numbers stay float32).
        lr: highest learning rate.
        vision_lr, projector_lr, language_lr, head_lr, adapter_lr: the same for one part of the model, for a score head,
            for adapters wherever they are; None: as `lr`. The released code has one rate for all, too.
        weight_decay: for matrices only; norms and biases never decay.
        vision_weight_decay, projector_weight_decay, language_weight_decay, head_weight_decay, adapter_weight_decay: the
            same for one of these; None: as `weight_decay`.
        betas: AdamW's moments.
        warmup: share of all optimizer steps in which the rate rises linearly.
        schedule: what follows the warm-up; `cosine` and `linear` end at zero.
        max_grad_norm: gradients are scaled down to this global norm; None or 0 leaves them.
    """

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: Positive = 1e-6
    weight_decay: NonNegative = 0.0
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    warmup: Share = 0.1
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    max_grad_norm: NonNegative | None = 1.0
    vision_lr: Positive | None = None
    projector_lr: Positive | None = None
    language_lr: Positive | None = None
    head_lr: Positive | None = None
    adapter_lr: Positive | None = None
    vision_weight_decay: NonNegative | None = None
    projector_weight_decay: NonNegative | None = None
    language_weight_decay: NonNegative | None = None
    head_weight_decay: NonNegative | None = None
    adapter_weight_decay: NonNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ConfigError(
                "an optimizer in 8 bits needs another package",
                argument="name",
                given="adamw_8bit, and bitsandbytes is not installed",
                expected="the package bitsandbytes",
                fix="pip install 'mmrlhf[quantized]', or optim.name=adamw",
            )

    @property
    def moments(self) -> float:
        """Bytes of state for a number that trains; in 8 bits with a float32 scale for each 256 numbers of a moment."""
        return 2 * 4 if self.name == "adamw" else 2 * (1 + 4 / 256)

    def of_part(self, part: str) -> tuple[float, float]:
        """Learning rate and weight decay of a part in `OPTIM_PARTS`."""
        rate, decay = getattr(self, f"{part}_lr"), getattr(self, f"{part}_weight_decay")
        return self.lr if rate is None else rate, self.weight_decay if decay is None else decay


def schedule_factor(step: int, total_steps: int, settings: OptimSettings) -> float:
    """Learning rate of optimizer step 0, 1, ... as a share of `settings.lr`, in [0, 1]."""
    warmup_steps = math.ceil(settings.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def build_optimizer(
    model: nn.Module, settings: OptimSettings, total_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over the trainable parameters with its schedule.

    Raises:
        ConfigError: nothing is trainable, or sharded parameters with an optimizer in 8 bits.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError(
            "no parameter of the model is trainable",
            where="model settings vision, projector, language",
            expected="at least one of them `full` or `lora`",
        )
    groups = [
        {**group, "lr": rate}
        for (rate, decay), members in _by_rate(model, trainable, settings).items()
        for group in _parameter_groups(members, decay)
    ]
    optimizer = _make(groups, settings)
    factor: Callable[[int], float] = lambda step: schedule_factor(step, total_steps, settings)  # noqa: E731
    return optimizer, LambdaLR(optimizer, factor)


def _make(groups: list[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        require_whole_parameters(settings)
    from bitsandbytes.optim.adamw import AdamW8bit  # needs the extra `quantized`

    plain = [{name: value for name, value in group.items() if name != "fused"} for group in groups]
    return AdamW8bit(plain, lr=settings.lr, betas=settings.betas)


def require_whole_parameters(settings: OptimSettings) -> None:
    """Raise ConfigError for an optimizer that cannot work on parameters that are split over devices."""
    if settings.name == "adamw_8bit":
        raise ConfigError(
            "an optimizer in 8 bits works on whole parameters, and these are split over devices",
            where="optim.name, trainer",
            given="adamw_8bit with a model that is split",
            expected="optim.name=adamw with trainer=fsdp, or trainer=ddp, auto or gpu",
        )


def _by_rate(
    model: nn.Module, trainable: Sequence[Tensor], settings: OptimSettings
) -> dict[tuple[float, float], list[Tensor]]:
    """Parameters by learning rate and weight decay; first the usual ones, whose rate is the one logged."""
    usual = settings.lr, settings.weight_decay
    own = {part: settings.of_part(part) for part in OPTIM_PARTS}
    found: dict[tuple[float, float], list[Tensor]] = {usual: []}
    part_of = _parts_of(model) if set(own.values()) != {usual} else {}
    for parameter in trainable:
        part = part_of.get(id(parameter))
        found.setdefault(usual if part is None else own[part], []).append(parameter)
    return {rates: members for rates, members in found.items() if members}


def _parts_of(model: nn.Module) -> dict[int, str]:
    """The part in `OPTIM_PARTS` that each parameter belongs to, by its identity."""
    backbone: Any = getattr(model, "backbone", None)
    found = {} if backbone is None else {id(p): part for part, members in parts(backbone).items() for p in members}
    for name, parameter in model.named_parameters():
        if name.startswith("score_head."):
            found[id(parameter)] = "head"
        elif ".lora_" in name:
            found[id(parameter)] = "adapter"
    return found


def _parameter_groups(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: sharded and whole parameters apart, matrices decay and the rest does not."""
    # fused: one pass over the parameters instead of a dozen, on CPUs too; sharded ones are left to torch's default
    halves = zip(split_sharded(parameters), (None, True), strict=True)
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0, "fused": fused}
        for half, fused in halves
        for decays in (True, False)
        if (members := [parameter for parameter in half if (parameter.ndim >= 2) == decays])
    ]


def split_sharded(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split tensors into (sharded over ranks, replicated on every rank)."""
    every = list(tensors)
    return [t for t in every if isinstance(t, DTensor)], [t for t in every if not isinstance(t, DTensor)]


def fill_missing_gradients(parameters: Sequence[Tensor]) -> None:
    """Give every parameter that took no part in this step a zero gradient.

    Which parameters take part depends on a rank's own micro-batches (a text-only one never reaches the projector);
    with zeros, every rank reduces the same list and the optimizer does the same for any number of ranks.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def average_replicated_gradients(parameters: Sequence[Tensor], all_reduce_mean: Callable[[Tensor], Tensor]) -> None:
    """Average the gradients of unsharded parameters over ranks, in place; FSDP2 has already averaged the others.

    Args:
        parameters: the trainable parameters, in the same order on every rank, each with a gradient.
        all_reduce_mean: averages a flat tensor over all ranks.
    """
    bucket: list[Tensor] = []
    numel = 0
    for parameter in split_sharded(parameters)[1]:
        assert parameter.grad is not None
        if bucket and (bucket[0].dtype != parameter.grad.dtype or numel + parameter.numel() > ALL_REDUCE_NUMEL):
            _average(bucket, all_reduce_mean)
            bucket, numel = [], 0
        bucket.append(parameter.grad)
        numel += parameter.numel()
    if bucket:
        _average(bucket, all_reduce_mean)


def _average(gradients: Sequence[Tensor], all_reduce_mean: Callable[[Tensor], Tensor]) -> None:
    flat = all_reduce_mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, piece in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def clip_gradients(parameters: Sequence[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients down to a global norm and return the norm before (a scalar, the same on every rank)."""
    halves = split_sharded(parameters)
    norms = []
    for half in halves:
        gradients = [parameter.grad for parameter in half if parameter.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    # shards may lie on the host while the rest is on a GPU
    total = torch.stack([norm.float().to(norms[-1].device) for norm in norms]).norm()
    if max_norm:  # 0 is off, as elsewhere: it would scale every gradient away
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for parameter in (*halves[0], *halves[1]):
            if parameter.grad is not None:
                gradient = _local(parameter.grad)
                gradient.mul_(scale.to(gradient.device))
    return total


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
