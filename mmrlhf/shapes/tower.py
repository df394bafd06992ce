"""Pre-training of a tiny model's vision tower on the embedded world: every patch learns what its cell holds, and which
cell that is.

A published checkpoint comes with a tower that has learnt to see. With a random one, the language model has to teach it
through answers, which took most of the supervised stage: after 600 steps it listed 20% of scenes without fault, and
88% with a tower that had been taught for a few seconds (one seed each).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ProcessorMixin

from mmrlhf.errors import ConfigError
from mmrlhf.media.images import decode_image
from mmrlhf.ranges import Count, Natural, Positive, check_fields
from mmrlhf.shapes.scene import HAZARD, SIDE, THINGS, Scene
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

CONTENTS = ("", *THINGS, HAZARD)
HELD_OUT = 0.1


@dataclass(frozen=True)
class TowerSettings:
    """How long the tower learns to see.

    Args:
        steps: optimizer steps; 0 leaves it random.
        pictures: pictures of one step.
        lr: highest learning rate.
    """

    steps: Natural = 150
    pictures: Count = 64
    lr: Positive = 2e-3

    def __post_init__(self) -> None:
        check_fields(self)


def pretrain_tower(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    groups: Iterable[PreferenceGroup],
    settings: TowerSettings,
    *,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Train the tower in place on the pictures of groups of the embedded world.

    Returns:
        the share of held-out patches whose cell's content it tells right.

    Raises:
        ConfigError: the model has no tower of patches in rows, or the groups no pictures with a known scene.
    """
    tower = getattr(model.base_model, "vision_tower", None)
    pictures = [group for group in groups if "scene" in group.meta and group.media and group.media[0].kind == "image"]
    if tower is None or not pictures:
        raise ConfigError(
            "this model's tower cannot be pre-trained on this data",
            where="stages.tiny.tower",
            given=f"{type(model).__name__}, {len(pictures)} pictures with a known scene",
            expected="model=shapes and the embedded world",
            fix="set stages.tiny.tower=null",
        )
    pixels, content = _pixels(processor, pictures), _contents(pictures)
    torch.manual_seed(seed)
    probe = _Probe(tower, model.config.vision_feature_layer)
    num_heldout = max(1, int(HELD_OUT * len(pixels)))
    _train(probe, pixels[num_heldout:], content[num_heldout:], settings, progress)
    with torch.no_grad():
        found, _ = probe(pixels[:num_heldout])
    return (found.argmax(-1) == content[:num_heldout][:, probe.cell]).float().mean().item()


class _Probe(nn.Module):
    """Two linear read-outs of each patch's feature: its cell's content, and its cell's number."""

    def __init__(self, tower: nn.Module, layer: int) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer
        config: Any = tower.config
        self.content = nn.Linear(config.hidden_size, len(CONTENTS))
        self.place = nn.Linear(config.hidden_size, SIDE * SIDE)
        side = config.image_size // config.patch_size
        cell_along = torch.arange(side) * SIDE // side
        self.cell = (cell_along[:, None] * SIDE + cell_along).flatten()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, H, W) -> logits of contents (N, patches, contents) and places (N, patches, cells)."""
        features = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
        return self.content(features), self.place(features)


def _train(probe: _Probe, pixels: Tensor, content: Tensor, settings: TowerSettings, progress: bool) -> None:
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in track(range(settings.steps), "pre-training the vision tower", settings.steps, enabled=progress):
        chosen = torch.randint(len(pixels), (settings.pictures,))
        found, place = probe(pixels[chosen])
        loss = cross_entropy(found.flatten(0, 1), content[chosen][:, probe.cell].flatten())
        loss = loss + cross_entropy(place.flatten(0, 1), probe.cell.repeat(len(chosen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _pixels(processor: Any, groups: list[PreferenceGroup]) -> Tensor:
    images = [decode_image(group.media[0].data[0], where=group.key) for group in groups]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return pixels.reshape(len(images), -1, *pixels.shape[-3:])[:, 0]


def _contents(groups: list[PreferenceGroup]) -> Tensor:
    """The number of what each cell holds (N, cells)."""
    return torch.tensor([[CONTENTS.index(thing) for thing in Scene.from_meta(g.meta["scene"]).cells] for g in groups])
