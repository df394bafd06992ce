"""Media of a group through the model's own processor: undecoded bytes -> pictures and clips -> tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from mmrlhf.conversation import IMAGE, VIDEO, Slot
from mmrlhf.errors import ConfigError, DataError, UserError
from mmrlhf.media.damage import Damage
from mmrlhf.media.images import Alpha, decode_image
from mmrlhf.media.video import Backend, Sampling, VideoClip, decode_frames, decode_video, packed_record
from mmrlhf.ranges import Count, Positive, check_fields
from mmrlhf.text import first_line
from mmrlhf.types import Media, PreferenceGroup

# What a processor returns about tokens or for its own use, and not about pixels.
_NOT_MEDIA = {
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "token_type_ids",
    "video_metadata",
    "text_replacement_offsets",
}


@dataclass(frozen=True)
class MediaSettings:
    """How videos become frames and pictures pixels; the same in training, scoring and evaluation.

    Args:
        num_frames: frames taken from a video or a folder of frames.
        sampling: `uniform`, `fps` (capped at num_frames) or `keyframes`.
        fps: frames per second for `sampling=fps`.
        backend: `decord`, `pyav`, or `auto`, which is PyAV (`mmrlhf.media.video` says why).
        alpha: transparent pixels are laid over `white`, or `drop`: the colour behind them is shown.
    """

    num_frames: Count = 16
    sampling: str = "uniform"
    fps: Positive | None = None
    backend: str = "auto"
    alpha: str = "white"

    def __post_init__(self) -> None:
        check_fields(self)
        choices = {"sampling": get_args(Sampling), "backend": get_args(Backend), "alpha": get_args(Alpha)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    "unknown way to read media",
                    argument=name,
                    given=getattr(self, name),
                    expected=f"one of {', '.join(allowed)}",
                )


# What one medium of a record shows: pictures (one; or a clip's frames, for families that read no videos), or a clip.
Shown = tuple[Image.Image, ...] | VideoClip


@dataclass(frozen=True)
class DecodedMedia:
    """The pictures and clips that one sequence shows, in the order of their places in the conversation."""

    shown: tuple[Shown, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.shown)

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All pictures."""
        return tuple(image for item in self.shown if not isinstance(item, VideoClip) for image in item)

    @property
    def clips(self) -> tuple[VideoClip, ...]:
        """All clips."""
        return tuple(item for item in self.shown if isinstance(item, VideoClip))

    @property
    def slots(self) -> tuple[tuple[Slot, ...], ...]:
        """What stands in the conversation for each medium."""
        return tuple((VIDEO,) if isinstance(item, VideoClip) else (IMAGE,) * len(item) for item in self.shown)

    def as_pictures(self) -> DecodedMedia:
        """The same with every frame of a clip as a picture of its own, for families that read no videos."""
        return DecodedMedia(tuple(_frames(item) for item in self.shown))

    def first_frames(self) -> DecodedMedia:
        """The same with the first frame of every clip as a picture."""
        return DecodedMedia(tuple(_frames(item)[:1] if isinstance(item, VideoClip) else item for item in self.shown))

    def damaged(self, damage: Damage, key: str) -> DecodedMedia:
        """Copies of the same sizes that do not show what these do; the group's key fixes what is left of each."""
        shown: list[Shown] = []
        images = clips = 0
        for item in self.shown:
            if isinstance(item, VideoClip):
                shown.append(replace(item, frames=damage.frames(item.frames, name=f"{key}/clip{clips}")))
                clips += 1
            else:
                shown.append(tuple(damage.image(im, name=f"{key}/image{n}") for n, im in enumerate(item, images)))
                images += len(item)
        return DecodedMedia(tuple(shown))


def _frames(item: Shown) -> tuple[Image.Image, ...]:
    return tuple(map(Image.fromarray, item.frames)) if isinstance(item, VideoClip) else item


def decode_media(group: PreferenceGroup, settings: MediaSettings, media: Sequence[Media] | None = None) -> DecodedMedia:
    """Decode media of a group, its own where no others are given, in their order.

    Raises:
        DataError: unreadable; names key, member and shard.
    """
    shown: list[Shown] = []
    for item in group.media if media is None else media:
        where = f"key {group.key}, member {item.names[0]}, shard {group.shard or '(not packed)'}"
        if item.kind == "image":
            shown.append((decode_image(item.data[0], alpha=settings.alpha, where=where),))  # type: ignore[arg-type]
        else:
            shown.append(_decode_clip(item, settings, packed_record(group.meta, item.names[0]), where))
    return DecodedMedia(tuple(shown))


def blank_media(media: Sequence[BlankMedium]) -> DecodedMedia:
    """Black pictures and clips: enough for a processor to count tokens."""
    return DecodedMedia(tuple(_blank(medium) for medium in media))


class BlankMedium(NamedTuple):
    """The size of a picture (no frames) or of a clip."""

    width: int
    height: int
    num_frames: int = 0


def _blank(medium: BlankMedium) -> Shown:
    width, height, count = medium
    if not count:
        return (Image.new("RGB", (width, height)),)
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    return VideoClip(frames, np.arange(count) * 1.0, 1.0, count, float(count))


@contextmanager
def refusals(where: str) -> Iterator[None]:
    """Turn whatever a stock processor raises about one query into a DataError that names the query.

    What processors raise is no part of their interface (ValueError, IndexError, ZeroDivisionError, cv2's own errors).
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            "the model's own processor refuses this query",
            where=where,
            given=f"{type(error).__name__}: {first_line(error)}",
            expected="media of sizes and lengths that this family reads",
            fix="leave the record out, change its media, or use another family",
        ) from error


def call_processor(
    processor: ProcessorMixin,
    text: str,
    media: DecodedMedia,
    *,
    add_special_tokens: bool,
    where: str,
    replacements: bool = False,
) -> dict[str, Any]:
    """The processor's own tensors of one conversation, a batch of one.

    Args:
        text: rendered by the chat template, with one placeholder per medium.
        add_special_tokens: whether the tokenizer puts its begin-of-text token before it.
        where: names the query.
        replacements: also say what stands for each placeholder (`text_replacement_offsets`).

    Raises:
        DataError: the processor refuses the query.
    """
    arguments: dict[str, Any] = {"text_kwargs": {"return_text_replacement_offsets": True}} if replacements else {}
    if media.images:
        arguments["images"] = [list(media.images)]
    if media.clips:
        # nested, as pictures are: SmolVLM's processor took no other form before transformers 5.23
        arguments["videos"] = [[clip.frames for clip in media.clips]]
        metadata = [_metadata(clip) for clip in media.clips]
        arguments["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
    call: Any = processor if media else processor.tokenizer
    with refusals(where):
        return call(text=[text], return_tensors="pt", add_special_tokens=add_special_tokens, **arguments)


def media_tensors(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a processor says about the media (pixels, grids, sizes), without what it says about tokens."""
    return {name: torch.as_tensor(value) for name, value in output.items() if name not in _NOT_MEDIA}


def _decode_clip(item: Media, settings: MediaSettings, packed: Mapping[str, Any] | None, where: str) -> VideoClip:
    if item.kind == "frames":
        return decode_frames(
            item.data,
            num_frames=settings.num_frames,
            sampling=settings.sampling,  # type: ignore[arg-type]
            fps=settings.fps,
            packed=packed,
            alpha=settings.alpha,  # type: ignore[arg-type]
            where=where,
        )
    return decode_video(
        item.data[0],
        num_frames=settings.num_frames,
        sampling=settings.sampling,  # type: ignore[arg-type]
        fps=settings.fps,
        backend=settings.backend,  # type: ignore[arg-type]
        where=where,
    )


def _metadata(clip: VideoClip) -> dict[str, Any]:
    """What a processor is told about a clip (transformers' VideoMetadata): the real time of every frame it gets.

    Its clock ticks once a second, so that a frame's number is its time, and number / fps, which families write into
    the text, is exact. A family that takes one rate for a whole clip reads frames / total_num_frames * fps: the even
    rate between the first frame and the last.
    """
    frames, height, width = clip.frames.shape[:3]
    span = float(clip.timestamps[-1] - clip.timestamps[0])
    return {
        "total_num_frames": frames * span / (frames - 1) if span > 0 else float(frames),
        "fps": 1.0,
        "frames_indices": clip.timestamps.tolist(),
        "height": height,
        "width": width,
        "duration": clip.duration,
    }
