"""Drafts: preference groups whose media are still to be read, and records that cannot be used."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmrlhf.conversation import IMAGE, VIDEO, Conversation
from mmrlhf.errors import DataError
from mmrlhf.media.video import (
    Sampling,
    VideoClip,
    choose_from_folder,
    decode_video,
    frames_record,
    packed_key,
)
from mmrlhf.records.fields import MediaItem, MediaRef
from mmrlhf.records.media_files import frame_folder, frame_names, read_image, read_video
from mmrlhf.records.members import safe_key
from mmrlhf.types import Media, PreferenceGroup

VideoForm = Literal["keep", "frames"]
_JPEG_QUALITY = 92
_NUMBER = re.compile(r"^v?\d+\.")


@dataclass(frozen=True)
class Rejection:
    """A record, or one pair of it, that cannot be used: its id, one sentence why, and file:line or path."""

    id: str
    reason: str
    where: str


@dataclass(frozen=True)
class Draft:
    """One query as a layout's importer found it.

    `group` has no media yet; `media` are those of the prompt's places, `own_media` those of each response, as
    paths below `root` as the record spells them, or embedded in it. `notes` counts what the importer changed (places
    stripped, repetitions merged), `problems` names contradictory annotations.
    """

    id: str
    group: PreferenceGroup
    root: Path
    media: tuple[MediaItem, ...] = ()
    own_media: tuple[tuple[MediaItem, ...], ...] = ()
    where: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def load(
        self,
        *,
        video: VideoForm = "keep",
        num_frames: int = 16,
        sampling: Sampling = "uniform",
        fps: float | None = None,
    ) -> PreferenceGroup:
        """Read the media and decode each once, so that nothing broken gets into a shard.

        Args:
            video: "keep" stores a video file as it is, "frames" as JPEGs of the frames that training would take.
            num_frames, sampling, fps: which frames to decode of a video, as in `decode_video` (for "keep": as a check).

        Raises:
            DataError: a path that leaves the root, a missing, empty or unreadable file.
        """
        reader = _Reader(self.root, self.where, video, num_frames, sampling, fps)
        media = reader.read(self.media)
        own = [reader.read(items, by_content=True) for items in self.own_media] or [()] * len(self.group.responses)
        responses = zip(self.group.responses, own, strict=True)
        return replace(
            self.group,
            media=media,
            responses=tuple(replace(response, media=each) if each else response for response, each in responses),
            meta={**self.group.meta, **reader.meta},
        )


@dataclass
class _Reader:
    """Reads media of one draft; `meta` is what the record keeps of how a video's frames were chosen."""

    root: Path
    where: str
    video: VideoForm
    num_frames: int
    sampling: Sampling
    fps: float | None
    meta: dict[str, Any] = field(default_factory=dict)

    def read(self, items: Sequence[MediaItem], *, by_content: bool = False) -> tuple[Media, ...]:
        """Read media in their order and name them as members: pictures by number, or all by a digest of the content."""
        found: list[Media] = []
        for item in items:
            number = sum(media.slot == item.slot for media in found)
            if item.slot == IMAGE:
                media, frames = read_image(self.root, item.ref, number, self.where), None
            else:
                media, frames = self._video(item.ref)
                media = _prefixed(media, f"v{number + 1}.") if number else media
            if by_content:
                media = named_by_content(media)
            if frames is not None:
                self.meta[packed_key(media.names[0])] = frames
            found.append(media)
        return tuple(found)

    def _video(self, ref: MediaRef) -> tuple[Media, dict[str, Any] | None]:
        found = read_video(self.root, ref, self.where)
        if isinstance(found, Path):
            item = frame_folder(found)
            chosen = choose_from_folder(len(item.data), self.num_frames, self.sampling, self.fps, str(found))
            if self.video == "frames" and len(chosen) < len(item.data):
                item, record = _some_frames(item, chosen.tolist(), self.sampling, self.fps)
                return item, record
            return item, None
        suffix, data, where = found
        clip = decode_video(data, num_frames=self.num_frames, sampling=self.sampling, fps=self.fps, where=where)
        if self.video == "keep":
            return Media("video", (suffix,), (data,)), None
        frames = [_to_jpeg(Image.fromarray(frame)) for frame in clip.frames]
        item = Media("frames", frame_names(["jpg"] * len(frames)), tuple(frames))
        return item, frames_record(clip, self.sampling, self.fps)


def named_by_content(media: Media) -> Media:
    """The same with names that begin with a digest of its bytes, so that equal media of responses are one member."""
    bare = replace(media, names=tuple(_NUMBER.sub("", name) for name in media.names))
    return _prefixed(bare, f"r{hashlib.blake2b(b''.join(media.data), digest_size=4).hexdigest()}.")


def _prefixed(media: Media, prefix: str) -> Media:
    return replace(media, names=tuple(prefix + name for name in media.names))


class Drafts(Iterator["Draft | Rejection"]):
    """What an importer returns: an iterator that knows about how many items will come, for progress bars."""

    def __init__(self, items: Iterator[Draft | Rejection], total: int) -> None:
        self._items, self._left = items, total

    def __next__(self) -> Draft | Rejection:
        item = next(self._items)
        self._left -= 1
        return item

    def __length_hint__(self) -> int:
        return max(self._left, 0)


def rejection(record_id: object, error: DataError, where: str) -> Rejection:
    """Turn what is wrong with a record into an entry of the report."""
    detail = f"{error.where or where}" + (f" ({error.given})" if error.given is not None else "")
    return Rejection(str(record_id), error.problem, detail if detail.startswith(where) else f"{where}: {detail}")


def load_or_reject(load: Callable[[Draft], PreferenceGroup], item: Draft | Rejection) -> PreferenceGroup | Rejection:
    """Load a draft's media, or say why it cannot be used; rejections pass through."""
    if isinstance(item, Rejection):
        return item
    try:
        return load(item)
    except DataError as error:
        return rejection(item.id, error, item.where)


def query_hash(prompt: Conversation, media: Sequence[MediaItem]) -> str:
    """Hash what, beside the id, tells two queries apart."""
    images = [str(item.ref) for item in media if item.slot == IMAGE]
    videos = [str(item.ref) for item in media if item.slot == VIDEO]
    clips = videos if len(videos) > 1 else next(iter(videos), None)
    return hashlib.blake2b(json.dumps([prompt.to_record(), images, clips]).encode(), digest_size=5).hexdigest()


def query_key(record_id: str, query: str, num_queries: int) -> str:
    """Return the sample key of a query; ids that several different queries share get the query's hash appended."""
    return safe_key(record_id) if num_queries == 1 else safe_key(f"{record_id}-{query}")


def _some_frames(
    folder: Media, chosen: list[int], sampling: Sampling, fps: float | None
) -> tuple[Media, dict[str, Any]]:
    """The chosen frames of a folder, one frame a second, and how they were chosen."""
    suffixes = [folder.names[i].rpartition(".")[2] for i in chosen]
    total = len(folder.data)
    times = np.array(chosen, dtype=float)
    clip = VideoClip(np.empty((len(chosen), 0, 0, 3), np.uint8), times, 1.0, total, float(total))
    item = Media("frames", frame_names(suffixes), tuple(folder.data[i] for i in chosen))
    return item, frames_record(clip, sampling, fps)


def _to_jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
