"""mDPO: preference training that also asks chosen responses to be likelier with their picture than with a damaged one.

Follows: mDPO (arXiv 2406.11839). Differs in: the damaged forward is one more forward of the whole packed group, so its
cost does not grow with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from mmrlhf.losses.image_conditional import MDPO, anchor, image_conditional
from mmrlhf.media.damage import DAMAGED, damaged_only
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.pairing import DAMAGED_REFERENCE, REFERENCE
from mmrlhf.methods.preference import PreferenceModule, Responses
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.tensors import PackedBatch


class ImageConditionalModule(PreferenceModule):
    """Trains a policy with mDPO's three terms; batches hold damaged media (`Encoder(damage=...)`).

    Args: as for `PreferenceModule`, with an `MDPO` objective.
    """

    @property
    def _mdpo(self) -> MDPO:
        assert isinstance(self._objective, MDPO)
        return self._objective

    @property
    @override
    def part_weights(self) -> Mapping[str, float]:
        parts = {"image": self._mdpo.image_weight, "anchor": self._mdpo.anchor_weight}
        return {**super().part_weights, **{name: weight for name, weight in parts.items() if weight > 0}}

    @override
    def count(self, batch: PackedBatch) -> Counts:
        counts = super().count(batch)
        if "image" not in self.part_weights:
            return counts
        assert counts.pairs is not None
        self._require(batch, DAMAGED_REFERENCE, self._needs_table, "reference", "the reference's view of damaged media")
        seen = (counts.pairs.weight * has_media(batch)[counts.pairs.group]).sum()
        return replace(counts, divisors={**counts.divisors, "image": seen})

    @override
    def sums_over_responses(
        self, batch: PackedBatch, counts: Counts, responses: Responses, record: StepRecord
    ) -> dict[str, Tensor]:
        pairs, beta = counts.pairs, self._mdpo.beta
        assert pairs is not None
        chosen = responses.log_ratio[pairs.chosen]
        sums = {"anchor": (pairs.weight * anchor(chosen, beta=beta, shift=self._mdpo.anchor_shift)).sum()}
        if "image" in self.part_weights:
            damaged = self._damaged(batch)
            without = self._ask(damaged).log_ratio[pairs.chosen]
            weight = pairs.weight * has_media(batch)[pairs.group]
            sums["image"] = (weight * image_conditional(chosen, without, beta=beta)).sum()
            record.add("image_margin", beta * (chosen - without), weight)
        return sums

    def _damaged(self, batch: PackedBatch) -> PackedBatch:
        """The same row with damaged media, and what the reference says to those."""
        columns = dict(batch.columns)
        if DAMAGED_REFERENCE in columns:
            columns[REFERENCE] = columns[DAMAGED_REFERENCE]
        return replace(
            batch,
            media=tuple(damaged_only(media) for media in batch.media),
            branch_media=tuple(damaged_only(media) for media in batch.branch_media),
            columns=columns,
        )


def has_media(batch: PackedBatch) -> Tensor:
    """1.0 for groups with damaged media (G,), 0.0 for those of text alone."""
    shown = torch.tensor([_is_damaged(media) for media in batch.media], dtype=torch.float32)
    for group, media in zip(batch.group_of_response.tolist(), batch.branch_media, strict=bool(batch.branch_media)):
        shown[group] = max(shown[group].item(), float(_is_damaged(media)))
    return shown.to(batch.group_weight.device)


def _is_damaged(media: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(DAMAGED) for name in media)
