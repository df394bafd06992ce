"""Texts as tokens, without media: what a user writes is tokenized as ordinary words, special tokens in it included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmrlhf.tokens.chat import MARK

Offsets = list[tuple[int, int]]


class Rendered(NamedTuple):
    """A conversation as text, with marks (`Chat.mark`), and the characters between which its labels lie."""

    text: str
    first: int
    last: int


class TextTokens:
    """The tokenizer, asked for texts with marks (`Chat.mark`).

    Args:
        tokenizer: the model's own.
        add_special_tokens: whether a conversation begins with what the tokenizer puts in front of texts.
    """

    def __init__(self, tokenizer: Any, *, add_special_tokens: bool) -> None:
        self.tokenizer, self.add_special_tokens = tokenizer, add_special_tokens

    def labelled(self, rendered: Sequence[Rendered]) -> tuple[list[list[int]], list[list[bool]]]:
        """Token ids of conversations with their placeholders as they are, and which of them are labels."""
        tokens = [self.plain(each.text) for each in rendered]
        # A token that straddles the border carries the response's first characters, so it is a label.
        is_label = [
            [end > each.first and start < each.last for start, end in offsets]
            for (_, offsets), each in zip(tokens, rendered, strict=True)
        ]
        return [ids for ids, _ in tokens], is_label

    def plain(self, text: str) -> tuple[list[int], Offsets]:
        """Token ids of a text and the characters of each, marks counted; pieces between marks by themselves.

        At a mark the tokenizer would have found an added token, before which it cuts the text in any case; so pieces
        begin and end where it cuts, but for the spelling itself.
        """
        ids: list[int] = []
        offsets: Offsets = []
        start = 0
        for number, piece in enumerate(text.split(MARK)):
            found = self.tokenizer(
                piece, add_special_tokens=self.add_special_tokens and number == 0, return_offsets_mapping=True
            )
            ids += found["input_ids"]
            offsets += [(start + first, start + last) for first, last in found["offset_mapping"]]
            start += len(piece) + len(MARK)
        return ids, offsets

    def offsets(self, text: str) -> Offsets:
        """Characters of each token of a text that stands behind another."""
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def common_suffix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common end of two token sequences."""
    shortest = min(len(left), len(right))
    return next((i for i in range(shortest) if left[-1 - i] != right[-1 - i]), shortest)


def shared_prefix(plain: list[list[int]], is_label: list[list[bool]]) -> int:
    """Length of the longest common beginning of several token sequences, before the first label of any."""
    shortest = min(flags.index(True) if True in flags else len(flags) for flags in is_label)
    return next((i for i in range(shortest) if any(ids[i] != plain[0][i] for ids in plain)), shortest)


def beginning_of(text: str, offsets: Sequence[tuple[int, int]], num_tokens: int) -> str:
    """As many whole characters as at most so many of a text's tokens spell; several tokens may share a character."""
    kept = max(0, min(num_tokens, len(offsets)))
    while 0 < kept < len(offsets) and offsets[kept][0] < offsets[kept - 1][1]:
        kept -= 1
    return text[: offsets[kept - 1][1]] if kept else ""
