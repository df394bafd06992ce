"""The nouns of the data: media, responses, and the query that they belong to, before any of it is tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Slot

MediaKind = Literal["image", "video", "frames"]


@dataclass(frozen=True)
class Media:
    """One image, one video file, or one video given as pre-extracted frames, as undecoded bytes.

    `names` are the members' suffixes inside a shard sample: `0.jpg`, `mp4`, or `f000.jpg`, `f001.jpg`, ...; those of a
    response's own media begin with a digest of their content. `data` is empty where only a record's text was read.
    """

    kind: MediaKind
    names: tuple[str, ...]
    data: tuple[bytes, ...] = field(repr=False)

    @property
    def slot(self) -> Slot:
        """What stands for it in a conversation."""
        return IMAGE if self.kind == "image" else VIDEO


@dataclass(frozen=True)
class Response:
    """One answer to a query, with whatever annotators and models said about it.

    `rank` 1 is best and ties share a rank; `critiques` is keyed by kind (`full`: expanded, `short`: a human's own
    words, `evidence`: without verdict words); `scores` and `reasons` by dimension (`helpfulness`, `faithfulness`,
    `ethics`, `overall`). `media` are what this answer alone was given to: they stand at the query's places instead of
    the group's.
    """

    text: str
    rank: int | None = None
    critiques: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    media: tuple[Media, ...] = ()

    @property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the text, and of its own media's names, which their content gives.

        With the group key, it is the join key of every side-car table.
        """
        return response_hash("\0".join([self.text, *(name for media in self.media for name in media.names)]))


def response_hash(text: str) -> str:
    """Hash a response's text for side-car tables (first 16 hex digits of SHA-256)."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PreferenceGroup:
    """One query: media, prompt and K responses; the unit of data everywhere. K = 0 is a query still to be answered.

    `prompt` is the conversation so far; a text is made one user's turn with the media in front. `media` are in the
    order of its places. `pairs` are explicit (chosen, rejected) response indices and only given where ranks cannot say
    the same (contradictory or cyclic annotations); otherwise they follow from the ranks. `meta` is JSON-able and
    travels with the record (the embedded world keeps its scene there).
    """

    key: str
    prompt: Conversation
    responses: tuple[Response, ...]
    media: tuple[Media, ...] = ()
    category: str = "unknown"
    source: str = ""
    licence: str = ""
    pairs: tuple[tuple[int, int], ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    shard: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            shown = self.media or next((response.media for response in self.responses if response.media), ())
            object.__setattr__(self, "prompt", Conversation.about(self.prompt, (media.slot for media in shown)))

    def shown_to(self, response: Response) -> tuple[Media, ...]:
        """The media at the prompt's places for one response: its own, or else the group's."""
        return response.media or self.media

    @property
    def has_own_media(self) -> bool:
        """Whether some response has media of its own."""
        return any(response.media for response in self.responses)

    def without_media(self) -> PreferenceGroup:
        """The query as text alone."""
        responses = tuple(replace(response, media=()) for response in self.responses)
        return replace(self, prompt=self.prompt.without_media(), media=(), responses=responses)

    @property
    def labelled_by_model(self) -> bool:
        """Whether a model ranked the responses (`meta.labels.by`): no reward model is judged by such a ranking."""
        labels = self.meta.get("labels")
        return isinstance(labels, Mapping) and "model" in str(labels.get("by", "")).split("+")

    def ranked_pairs(self) -> tuple[tuple[int, int], ...]:
        """All (chosen, rejected) index pairs: the explicit ones, else every two responses whose ranks differ."""
        if self.pairs is not None:
            return self.pairs
        ranks = [response.rank for response in self.responses]
        return tuple(
            (i, j)
            for i, a in enumerate(ranks)
            for j, b in enumerate(ranks)
            if a is not None and b is not None and a < b
        )
