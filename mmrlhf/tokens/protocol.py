"""What the evaluation that MM-RLHF released lets its reward model see: every picture as its thumbnail alone.

Follows: the release's evaluation script (commit 7c8af1d), which hands LLaVA-OneVision one tensor of four dimensions
where its training hands a list of crops. The model then takes the first view of a picture (27 x 27 tokens, no line
breaks) and of a video the first frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from mmrlhf.errors import ConfigError
from mmrlhf.tensors import THUMBNAILS

# What a reward model is shown: media as it was trained on, or as the release evaluates it.
Protocol = Literal["trained", "released"]
FAMILY = "llava_onevision"


class Thumbnails:
    """LLaVA-OneVision's processor with every picture as its thumbnail; it reads no videos."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer, self.image_token = processor.tokenizer, processor.image_token
        with_class_token = processor.vision_feature_select_strategy == "default"
        self._num_tokens = processor.num_image_tokens - with_class_token

    def apply_chat_template(self, *arguments: Any, **named: Any) -> Any:
        """As the processor's own."""
        return self._processor.apply_chat_template(*arguments, **named)

    def __call__(
        self,
        text: list[str],
        images: Sequence[Sequence[Image.Image]],
        *,
        return_tensors: str,
        text_kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> dict[str, Any]:
        """Token ids of a text with its pictures' placeholders expanded, and the thumbnails."""
        (shown,) = images
        views = self._processor.image_processor(images=[[image] for image in shown], return_tensors=return_tensors)
        expanded = [one.replace(self.image_token, self.image_token * self._num_tokens) for one in text]
        tokens = self.tokenizer(expanded, return_tensors=return_tensors, **named)
        offsets = [[{"replacement": self.image_token * self._num_tokens}] * len(shown)] if text_kwargs else None
        told = {} if offsets is None else {"text_replacement_offsets": offsets}
        return {**tokens, **told, THUMBNAILS: views["pixel_values"][:, 0]}


def with_protocol(processor: Any, protocol: Protocol, family: str) -> Any:
    """The processor that shows what a protocol says.

    Raises:
        ConfigError: an unknown protocol, or `released` for a family that the release does not evaluate.
    """
    if protocol == "trained":
        return processor
    if protocol != "released" or family != FAMILY:
        raise ConfigError(
            "this reward model cannot be asked under this protocol",
            where="protocol",
            given=f"protocol={protocol}, a model of the family {family}",
            expected=f"trained; or released, which is about {FAMILY} alone",
            fix="set protocol=trained",
        )
    return Thumbnails(processor)
