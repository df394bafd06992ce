"""How long a sequence may be, and what becomes of a longer one: only a response loses its end, and that is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mmrlhf.errors import DataError
from mmrlhf.tensors import num_before_labels
from mmrlhf.tokens.text_tokens import TextTokens, beginning_of
from mmrlhf.types import PreferenceGroup, Response

TOO_LONG = "a prompt with its media is longer than the model's context"
RESPONSE_TOO_LONG = "with a response the prompt is longer than the model's context"


@dataclass(frozen=True)
class LengthLimit:
    """The longest sequence, and the policy for longer ones.

    Args:
        max_tokens: longest prefix + branch.
        too_long: `shorten` takes the end of a response, `refuse` none.
        room: tokens that stay free behind a context.
        shown: what of a branch's own is part of the context, as responses are in critiques (`Template.shown`).
        texts: the tokenizer.
        in_turn: whether the contexts of all responses of a query stand behind one another.
    """

    max_tokens: int
    too_long: str
    room: int
    shown: str
    texts: TextTokens
    in_turn: bool = False

    def excess_of_each(
        self, sequences: Sequence[Tensor], labels: Sequence[Tensor], cut: int, with_answer: bool
    ) -> list[int]:
        """By how many tokens each sequence is too long: by itself, or in turn as its share of what all are too long.

        Args:
            cut: length of their common prefix.
        """
        if not self.in_turn or len(sequences) == 1:
            return [self.excess(*each, with_answer) for each in zip(sequences, labels, strict=True)]
        contexts = [num_before_labels(each) for each in labels]
        behind = max(len(ids) - context for ids, context in zip(sequences, contexts, strict=True))
        branches = [context - cut for context in contexts]
        return shares_of(cut + sum(branches) + max(self.room, behind) - self.max_tokens, branches)

    def excess(self, ids: Tensor, is_label: Tensor, with_answer: bool) -> int:
        """By how many tokens a sequence is too long: of its context, with room for what is written behind it."""
        context = num_before_labels(is_label)
        if self.shown:
            return context + max(self.room, len(ids) - context) - self.max_tokens
        # of an answer one token has to fit, the rest is cut at its end; what is to be answered needs room for all
        return context + (1 if with_answer else self.room) - self.max_tokens

    def shorten(self, group: PreferenceGroup, response: Response, excess: int) -> tuple[Response, int]:
        """Take tokens off the end of a response that is shown; the response, and how many.

        Raises:
            DataError: nothing of it would be left, or `too_long=refuse`.
        """
        offsets = self.texts.offsets(response.text)
        text = beginning_of(response.text, offsets, len(offsets) - excess)
        if self.too_long == "refuse" or not text:
            given = f"{len(offsets)} tokens are its {self.shown} {response.text[:40]!r}..."
            raise self.error(group, excess, given, response if text and self.shown == "response" else None)
        # the hash stays that of the whole text: it is given by the caller's own responses
        return replace(response, text=text), excess

    def check(self, group: PreferenceGroup, cut: int, over: int) -> None:
        """Refuse a prompt that does not fit, by itself or with the room behind it; raises DataError."""
        if over > 0:
            raise self.error(group, over, f"{cut} tokens are before the first response token")

    def error(self, group: PreferenceGroup, excess: int, given: str, response: Response | None = None) -> DataError:
        """The error for a group that does not fit.

        Args:
            given: what takes the room.
            response: without which, or shortened, the rest would fit.
        """
        room = f", {self.room} of them kept free for what the model writes" if self.room else ""
        room += ", for all responses together (reading=in_turn)" if self.in_turn else ""
        return DataError(
            TOO_LONG if response is None else RESPONSE_TOO_LONG,
            where=place_of(group) + ("" if response is None else _number_of(group, response)),
            given=f"{excess} tokens too many; {given} ({len(group.media)} media)",
            expected=f"at most {self.max_tokens} tokens (model.settings.max_tokens){room}",
            fix="raise model.settings.max_tokens, use fewer frames (data.media.num_frames), or drop the record",
        )

    def kept(self, group: PreferenceGroup, ids: Tensor, response: Response) -> int:
        """How many tokens of an answer's sequence are kept; raises DataError if not all, and `too_long=refuse`."""
        kept = min(len(ids), self.max_tokens)
        if kept < len(ids) and self.too_long == "refuse":
            given = f"{len(ids)} tokens with its response {response.text[:40]!r}"
            raise self.error(group, len(ids) - kept, given, response)
        return kept


def shares_of(excess: int, lengths: Sequence[int]) -> list[int]:
    """What each of several lengths gives up, so that together they lose an excess: the longest come down to one length.

    So no short response pays for a long one. Nothing where there is no excess, all where it is more than there is.
    """
    level, taken = 0, 0
    falling = sorted(lengths, reverse=True)
    for number, (length, below) in enumerate(zip(falling, [*falling[1:], 0], strict=True), 1):
        if taken + number * (length - below) >= excess:
            level = length - -(-(excess - taken) // number)
            break
        taken += number * (length - below)
    return [max(0, length - level) for length in lengths]


def _number_of(group: PreferenceGroup, response: Response) -> str:
    """Which of the group's responses it is; nothing for one that only stands for them."""
    found = (number for number, each in enumerate(group.responses) if each.hash == response.hash)
    return next((f", response {number}" for number in found), "")


def place_of(group: PreferenceGroup) -> str:
    """Where a group is, for an error."""
    return f"key {group.key}, shard {group.shard or '(not packed)'}"
