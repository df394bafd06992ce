"""Media of a group through the model's own processor: undecoded bytes -> pictures and clips -> tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

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


@dataclass(frozen=True)
class DecodedMedia:
    """The pictures and clips of one group, in the order of its record; pictures come first in the conversation."""

    images: tuple[Image.Image, ...] = ()
    clips: tuple[VideoClip, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.clips)

    @property
    def counts(self) -> tuple[int, int]:
        """How many pictures, and how many clips."""
        return len(self.images), len(self.clips)

    def as_pictures(self) -> DecodedMedia:
        """The same with every frame of a clip as a picture of its own, for families that read no videos."""
        frames = tuple(Image.fromarray(frame) for clip in self.clips for frame in clip.frames)
        return DecodedMedia(self.images + frames)

    def first_frames(self) -> DecodedMedia:
        """The same with the first frame of every clip as a picture."""
        return DecodedMedia(self.images + tuple(Image.fromarray(clip.frames[0]) for clip in self.clips))

    def damaged(self, damage: Damage, key: str) -> DecodedMedia:
        """Copies of the same sizes that do not show what these do; the group's key fixes what is left of each."""
        images = (damage.image(image, name=f"{key}/image{i}") for i, image in enumerate(self.images))
        clips = (
            replace(clip, frames=damage.frames(clip.frames, name=f"{key}/clip{i}")) for i, clip in enumerate(self.clips)
        )
        return DecodedMedia(tuple(images), tuple(clips))


def decode_media(group: PreferenceGroup, settings: MediaSettings) -> DecodedMedia:
    """Decode every medium of a group.

    Raises:
        DataError: unreadable; names key, member and shard.
    """
    images, clips = [], []
    for item in group.media:
        where = f"key {group.key}, member {item.names[0]}, shard {group.shard or '(not packed)'}"
        if item.kind == "image":
            images.append(decode_image(item.data[0], alpha=settings.alpha, where=where))  # type: ignore[arg-type]
        else:
            clips.append(_decode_clip(item, settings, packed_record(group.meta, item.names[0]), where))
    return DecodedMedia(tuple(images), tuple(clips))


def blank_media(
    image_sizes: tuple[tuple[int, int], ...], clip_size: tuple[int, int] | None, num_frames: int
) -> DecodedMedia:
    """Black pictures and at most one black clip of these (width, height): enough for a processor to count tokens."""
    images = tuple(Image.new("RGB", size) for size in image_sizes)
    if clip_size is None:
        return DecodedMedia(images)
    width, height = clip_size
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    return DecodedMedia(images, (VideoClip(frames, np.arange(num_frames) * 1.0, 1.0, num_frames, float(num_frames)),))


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
    processor: ProcessorMixin, text: str, media: DecodedMedia, *, add_special_tokens: bool, where: str
) -> dict[str, Tensor]:
    """The processor's own tensors of one conversation, a batch of one.

    Args:
        text: rendered by the chat template, with one placeholder per medium.
        add_special_tokens: whether the tokenizer puts its begin-of-text token before it.
        where: names the query.

    Raises:
        DataError: the processor refuses the query.
    """
    arguments: dict[str, Any] = {}
    if media.images:
        arguments["images"] = [list(media.images)]
    if media.clips:
        arguments["videos"] = [clip.frames for clip in media.clips]
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
