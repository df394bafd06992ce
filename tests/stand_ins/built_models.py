"""Tiny models ready to be compared: built with their encoder, their gradients taken and held against each other."""

from __future__ import annotations

from pathlib import Path

import torch

from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import ResponseOutputs
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate, Template

TRAIN_ALL = {"vision": "full", "projector": "full", "language": "full"}


def build(folder: Path, template: Template | None = None, **settings: object) -> tuple[PackedModel, Encoder]:
    """A tiny model and its encoder."""
    chosen = ModelSettings(**settings)  # type: ignore[arg-type]
    backbone, processor = load_backbone(folder, chosen)
    encoder = Encoder(
        processor,
        template=template or AnswerTemplate(),
        positions=positions_for(backbone),
        media=MediaSettings(num_frames=4),
    )
    return PackedModel(backbone, chosen), encoder


def gradients(model: PackedModel, outputs: ResponseOutputs) -> dict[str, torch.Tensor]:
    """Parameter gradients of a fixed mix of everything a forward returns."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(outputs.logprob))
    (outputs.logprob @ weights + (outputs.hidden.sum(1) @ weights)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 5e-5) -> None:
    """Two gradients differ by less than a relative tolerance over all parameters."""
    assert left.keys() == right.keys() and left
    difference = sum((left[name] - right[name]).square().sum() for name in left) ** 0.5
    assert difference / sum(g.square().sum() for g in right.values()) ** 0.5 < tolerance
