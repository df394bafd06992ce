"""What media cost in tokens, asked of the model's own processor with blank ones: nothing is read or decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from transformers import ProcessorMixin

from mmrlhf.conversation import IMAGE, VIDEO, Slot
from mmrlhf.errors import DataError
from mmrlhf.media.video import count_frames
from mmrlhf.tokens.chat import Chat
from mmrlhf.tokens.processing import BlankMedium, DecodedMedia, MediaSettings, blank_media, call_processor
from mmrlhf.tokens.protocol import Thumbnails
from mmrlhf.types import PreferenceGroup

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
    def more_clips(self) -> Any: ...
    @property
    def own_media(self) -> Any: ...
    @property
    def num_turns(self) -> int: ...
    @property
    def text_chars(self) -> int: ...
    @property
    def critique_chars(self) -> int: ...


class Visual(NamedTuple):
    """Tokens of a user turn of nothing but the media, by how many they exceed its placeholders, and these, for each."""

    tokens: int = 0
    expanded: int = 0
    slots: tuple[tuple[Slot, ...], ...] = ()


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

    def estimate(self, entry: SizedEntry) -> int:
        """Tokens of a group's media, those of sizes near theirs; 0 where the processor refuses them."""
        return sum(self._near(media) for media in self._sequences(entry))

    def common_sizes(self, entries: Sequence[SizedEntry], most: int = 256) -> list[int]:
        """Tokens of many groups' media: of the very sizes where these are among the most common, else near them."""
        asked = [self._sequences(entry) for entry in entries]
        common = {sizes for sizes, _ in Counter(media for each in asked for media in each).most_common(most)}
        return [sum(self._very(media) if media in common else self._near(media) for media in each) for each in asked]

    def sized(self, entry: SizedEntry, group: PreferenceGroup) -> tuple[tuple[BlankMedium, ...], ...]:
        """What the index says of the group's own media, and of those of each of its responses, in their order."""
        found = []
        shown = (group.media, *(response.media for response in group.responses))
        for media, (images, clips) in zip(shown, self._sizes(entry, len(group.responses)), strict=True):
            left = {IMAGE: iter(images), VIDEO: iter(clips)}
            found.append(tuple(next(left[each.slot]) for each in media))
        return tuple(found)

    def exact(self, media: tuple[BlankMedium, ...]) -> Visual:
        """What media of these very sizes cost in one sequence.

        Media that were unreadable when they were indexed count nothing: whoever reads them will say so.

        Raises:
            DataError: the processor refuses media of such sizes.
        """
        found = self._asked(_readable_ones(media))
        if isinstance(found, DataError):
            raise DataError(found.problem, given=found.given, expected=found.expected, fix=found.fix)
        shown = blank_media([BlankMedium(1, 1, min(each.num_frames, 1)) for each in media])
        counted = zip(self.readable(shown).slots, media, strict=True)
        slots = tuple(one * each.num_frames if self._as_pictures(one, each) else one for one, each in counted)
        return found._replace(slots=slots)

    def _as_pictures(self, slots: tuple[Slot, ...], media: BlankMedium) -> bool:
        """Whether a clip is shown as a picture for each frame."""
        return bool(media.num_frames) and slots == (IMAGE,) and not isinstance(self._processor, Thumbnails)

    def _near(self, media: tuple[BlankMedium, ...]) -> int:
        # Of rounded sizes there are few, so most are counted once; where those are refused, the real ones may not be.
        rounded = self._asked(tuple(map(_rounded, media)))
        return self._very(media) if isinstance(rounded, DataError) else rounded.tokens

    def _very(self, media: tuple[BlankMedium, ...]) -> int:
        found = self._asked(media)
        return 0 if isinstance(found, DataError) else found.tokens

    def _sequences(self, entry: SizedEntry) -> list[tuple[BlankMedium, ...]]:
        """Readable media of each sequence that shows any: one for the group, or one for each response."""
        of_group, *own = self._sizes(entry, entry.num_responses)
        shared = _readable_ones((*of_group[0], *of_group[1]))
        if not any(images or clips for images, clips in own):
            return [shared]
        return [_readable_ones((*images, *clips)) or shared for images, clips in own]

    def _sizes(self, entry: SizedEntry, num_responses: int) -> Iterator[tuple[list[BlankMedium], list[BlankMedium]]]:
        """(pictures, clips) of the group, then of each response."""
        images = [BlankMedium(int(width), int(height)) for width, height in entry.image_sizes]
        width, height = entry.video_size or (384, 384)
        facts = [(entry.num_frames, entry.duration, width, height)] if entry.num_frames else []
        clips = [
            BlankMedium(int(width), int(height), self._frames(int(frames), duration))
            for frames, duration, width, height in (*facts, *entry.more_clips)
        ]
        own = list(entry.own_media) or [(0, 0)] * num_responses
        of_group = len(images) - sum(each[0] for each in own), len(clips) - sum(each[1] for each in own)
        for num_images, num_clips in (of_group, *own):
            yield images[:num_images], clips[:num_clips]
            images, clips = images[num_images:], clips[num_clips:]

    def _frames(self, frames: int, duration: float) -> int:
        media = self._media
        if media.fps is None or not frames:
            return media.num_frames
        return count_frames(duration, media.num_frames, media.sampling, media.fps)  # type: ignore[arg-type]

    def _ask(self, sizes: tuple[BlankMedium, ...]) -> Visual | DataError:
        media = self.readable(blank_media(sizes))
        if not media:
            return Visual()
        text = self._chat.media_only([slot for slots in media.slots for slot in slots])
        add = self._chat.add_special_tokens
        where = f"media of {', '.join(map(_described, sizes))}"
        try:
            output = call_processor(self._processor, text, media, add_special_tokens=add, where=where)
        except DataError as error:
            return DataError(error.problem, where=where, given=error.given, expected=error.expected, fix=error.fix)
        tokens = int(output["input_ids"].shape[1])
        short = self._processor.tokenizer(text, add_special_tokens=add)["input_ids"]
        # Where time marks of frames are text, those of a blank clip may have a token more than the real ones.
        frames = sum(len(clip.frames) for clip in media.clips)
        return Visual(tokens, max(0, tokens - len(short) - frames))


def _readable_ones(media: Sequence[BlankMedium]) -> tuple[BlankMedium, ...]:
    """Media without those of (0, 0), which were unreadable when they were indexed."""
    return tuple(each for each in media if each.width and each.height)


def _described(medium: BlankMedium) -> str:
    return f"{medium.width} x {medium.height}" + (f", {medium.num_frames} frames" if medium.num_frames else "")


def _rounded(medium: BlankMedium) -> BlankMedium:
    """Sides to the next 64 pixels; small sides, and both of a long strip, as they are."""
    size = medium.width, medium.height
    if max(size) > _LONG * min(size):
        return medium
    width, height = (max(64, round(side / 64) * 64) if side > 64 else side for side in size)
    return BlankMedium(width, height, medium.num_frames)
