"""What media cost in tokens, asked of the model's own processor with blank ones: nothing is read or decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from transformers import ProcessorMixin

from mmrlhf.errors import DataError
from mmrlhf.media.video import count_frames
from mmrlhf.tokens.chat import Chat
from mmrlhf.tokens.processing import DecodedMedia, MediaSettings, blank_media, call_processor
from mmrlhf.tokens.protocol import Thumbnails

Size = tuple[int, int]
# Beyond this ratio of its sides a picture's own size is asked about, not a rounded one: families refuse at some ratio.
_LONG = 8


class SizedEntry(Protocol):
    """What the cost estimate reads from an index entry."""

    @property
    def num_responses(self) -> int: ...
    @property
    def num_images(self) -> int: ...
    @property
    def image_sizes(self) -> Any: ...
    @property
    def video_size(self) -> Any: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def duration(self) -> float: ...
    @property
    def text_chars(self) -> int: ...
    @property
    def critique_chars(self) -> int: ...


class Visual(NamedTuple):
    """Tokens of a user turn of nothing but the media, and by how many they exceed its placeholders, at least."""

    tokens: int = 0
    expanded: int = 0


class VisualTokens:
    """Counts what media of known sizes cost; every combination of sizes is asked about once.

    Args:
        processor, chat: the model's own.
        media: how videos become frames.
    """

    def __init__(self, processor: ProcessorMixin, chat: Chat, media: MediaSettings) -> None:
        self._processor: Any = processor
        self._chat, self._media = chat, media
        self._asked = lru_cache(maxsize=4096)(self._ask)

    def readable(self, media: DecodedMedia) -> DecodedMedia:
        """The same media, clips as pictures where the processor reads no videos."""
        if isinstance(self._processor, Thumbnails):
            return media.first_frames()
        return media if getattr(self._processor, "video_processor", None) is not None else media.as_pictures()

    def placeholders(self, entry: SizedEntry) -> tuple[int, int]:
        """How many pictures and clips a group's conversation shows."""
        clip = ((1, 1) if entry.num_frames else None, self._frames(entry))
        shown = self.readable(blank_media((), *clip))
        return entry.num_images + len(shown.images), len(shown.clips)

    def estimate(self, entry: SizedEntry) -> int:
        """Tokens of a group's media, those of sizes near theirs; 0 where the processor refuses them."""
        sizes, clip = _known_sizes(entry)
        # Of rounded sizes there are few, so most are counted once; where those are refused, the real ones may not be.
        rounded = self._asked(tuple(map(_rounded, sizes)), _rounded(clip) if clip else None, self._frames(entry))
        found = self._asked(sizes, clip, self._frames(entry)) if isinstance(rounded, DataError) else rounded
        return 0 if isinstance(found, DataError) else found.tokens

    def common_sizes(self, entries: Sequence[SizedEntry], most: int = 256) -> list[int]:
        """Tokens of many groups' media: of the very sizes where these are among the most common, else near them."""
        asked = [(*_known_sizes(entry), self._frames(entry)) for entry in entries]
        common = {sizes for sizes, _ in Counter(asked).most_common(most)}
        found = [
            self._asked(*sizes) if sizes in common else self.estimate(entry)
            for sizes, entry in zip(asked, entries, strict=True)
        ]
        return [each if isinstance(each, int) else 0 if isinstance(each, DataError) else each.tokens for each in found]

    def exact(self, entry: SizedEntry) -> Visual:
        """The same of the very sizes.

        Media that were unreadable when they were indexed count nothing: whoever reads them will say so.

        Raises:
            DataError: the processor refuses media of such sizes.
        """
        found = self._asked(*_known_sizes(entry), self._frames(entry))
        if isinstance(found, DataError):
            raise DataError(found.problem, given=found.given, expected=found.expected, fix=found.fix)
        return found

    def _frames(self, entry: SizedEntry) -> int:
        media = self._media
        if media.fps is None or not entry.num_frames:
            return media.num_frames
        return count_frames(entry.duration, media.num_frames, media.sampling, media.fps)  # type: ignore[arg-type]

    def _ask(self, sizes: tuple[Size, ...], clip: Size | None, num_frames: int) -> Visual | DataError:
        media = self.readable(blank_media(sizes, clip, num_frames))
        if not media:
            return Visual()
        text = self._chat.media_only(num_images=len(media.images), num_videos=len(media.clips))
        add = self._chat.add_special_tokens
        where = f"pictures of {sizes}, clip of {clip}"
        try:
            output = call_processor(self._processor, text, media, add_special_tokens=add, where=where)
        except DataError as error:
            return DataError(error.problem, where=where, given=error.given, expected=error.expected, fix=error.fix)
        tokens = int(output["input_ids"].shape[1])
        short = self._processor.tokenizer(text, add_special_tokens=add)["input_ids"]
        # Where time marks of frames are text, those of a blank clip may have a token more than the real ones.
        return Visual(tokens, max(0, tokens - len(short) - num_frames * len(media.clips)))


def _known_sizes(entry: SizedEntry) -> tuple[tuple[Size, ...], Size | None]:
    """(width, height) of pictures and of a clip, without (0, 0), which were unreadable when they were indexed."""
    sizes = tuple((int(width), int(height)) for width, height in entry.image_sizes if width and height)
    width, height = (entry.video_size or (384, 384)) if entry.num_frames else (0, 0)
    return sizes, (int(width), int(height)) if width and height else None


def _rounded(size: Size) -> Size:
    """A (width, height) to the next 64 pixels; small sides, and both of a long strip, as they are."""
    if max(size) > _LONG * min(size):
        return size
    width, height = (max(64, round(side / 64) * 64) if side > 64 else side for side in size)
    return width, height
