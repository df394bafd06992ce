"""Drafts: preference groups whose media are still to be read, and records that cannot be used."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.media.video import Sampling, VideoClip, choose_from_folder, decode_video, frames_record
from mmrlhf.records.fields import MediaRef
from mmrlhf.records.media_files import frame_folder, frame_names, read_image, read_video
from mmrlhf.records.members import safe_key
from mmrlhf.types import Media, PreferenceGroup

VideoForm = Literal["keep", "frames"]
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Rejection:
    """A record, or one pair of it, that cannot be used: its id, one sentence why, and file:line or path."""

    id: str
    reason: str
    where: str


@dataclass(frozen=True)
class Draft:
    """One query as a layout's importer found it.

    `group` has no media yet; `images` and `video` are paths below `root` as the record spells them, or embedded in the
    record. `notes` counts what the importer changed (placeholders stripped, repetitions merged), `problems` names
    contradictory annotations.
    """

    id: str
    group: PreferenceGroup
    root: Path
    images: tuple[MediaRef, ...] = ()
    video: MediaRef | None = None
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
        media = [read_image(self.root, ref, number, self.where) for number, ref in enumerate(self.images)]
        meta = dict(self.group.meta)
        if self.video is None:
            return replace(self.group, media=tuple(media), meta=meta)
        found = read_video(self.root, self.video, self.where)
        if isinstance(found, Path):
            item = frame_folder(found)
            chosen = choose_from_folder(len(item.data), num_frames, sampling, fps, str(found))
            if video == "frames" and len(chosen) < len(item.data):
                item, meta["video"] = _some_frames(item, chosen.tolist(), sampling, fps)
            return replace(self.group, media=(*media, item), meta=meta)
        suffix, data, where = found
        clip = decode_video(data, num_frames=num_frames, sampling=sampling, fps=fps, where=where)
        item = Media("video", (suffix,), (data,))
        if video == "frames":
            frames = [_to_jpeg(Image.fromarray(frame)) for frame in clip.frames]
            item = Media("frames", frame_names(["jpg"] * len(frames)), tuple(frames))
            meta["video"] = frames_record(clip, sampling, fps)
        return replace(self.group, media=(*media, item), meta=meta)


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


def query_hash(prompt: str, images: tuple[MediaRef, ...], video: MediaRef | None) -> str:
    """Hash what, beside the id, tells two queries apart."""
    media = [str(image) for image in images], None if video is None else str(video)
    return hashlib.blake2b(json.dumps([prompt, *media]).encode(), digest_size=5).hexdigest()


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
