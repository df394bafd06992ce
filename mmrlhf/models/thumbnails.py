"""Features of LLaVA-OneVision's thumbnails, without the line break that its stock forward puts behind each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


def thumbnail_features(base: Any, pixels: Tensor) -> dict[str, BaseModelOutputWithPooling]:
    """What a stock forward takes as `mm_encoder_outputs` for pictures (N, C, H, W) of which each is one view.

    The stock model reads pictures without their crops where a sample has several; so one alone goes in twice.
    """
    shown = torch.cat([pixels, pixels]) if len(pixels) == 1 else pixels
    found = base.get_image_features(
        pixel_values=shown,
        image_sizes=torch.tensor([pixels.shape[-2:]] * len(shown)),
        batch_num_images=torch.tensor([len(shown)]),
        return_dict=True,
    )
    return {"image": BaseModelOutputWithPooling(pooler_output=[one[:-1] for one in found.pooler_output[: len(pixels)]])}  # type: ignore[arg-type]
