"""Responses of a query that are read in turn: each with those before it, in an order that is drawn.

Follows: the multi-response reward model (arXiv 2604.10966): a query's responses stand behind one another, in an order
that is drawn anew for every step, under plain causal attention, with positions that run on; each is scored at its last
token. Differs in: responses are parted by the words of the request that shows each of them (`[LMM Response]:`) and not
by a token of their own, so the first response in the order is read exactly as it is alone; and of the responses before
it a response sees their contexts, without the critiques that are written behind them. What stands behind one response
is thus, for the model, one plain sequence: prefix, contexts up to its own, its critique. Responses with media of their
own are read apart, each by itself: beside their rivals they would have to be shown those rivals' media.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmrlhf.errors import ConfigError
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.chat import Chat
from mmrlhf.tokens.length import place_of
from mmrlhf.tokens.sequences import Slots
from mmrlhf.tokens.templates import CritiqueTemplate, Template
from mmrlhf.tokens.text_tokens import Rendered, TextTokens
from mmrlhf.types import PreferenceGroup, Response

# How a reward model reads a query's responses: each by itself, or with those before it.
Reading = Literal["apart", "in_turn"]
# In which orders responses are read: each once at every place, or one order.
Orders = Literal["all", "drawn"]
# Marks where what is said of a response begins; of Unicode's private use, it is no character of anyone's text.
_HERE = "\ue0f6"


class ResponseStart:
    """Finds where, in a complete sequence, the words begin that show a response: they belong to its branch.

    Args:
        template: shows the question before the response.

    Raises:
        ConfigError: it does not, or shows no response at all.
    """

    def __init__(self, template: Template, chat: Chat, texts: TextTokens) -> None:
        request = template.request if isinstance(template, CritiqueTemplate) else ""
        before, _, behind = request.partition("{question}")
        if not isinstance(template, CritiqueTemplate) or "{response}" not in behind:
            raise ConfigError(
                "responses are read in turn behind a question that all of them share",
                where="reading=in_turn",
                given=repr(request) if request else f"the template '{template.name}'",
                expected="a request with {question} before {response}",
                fix="reading=apart",
            )
        header, _, _ = behind.partition("{response}")
        space = header[: len(header) - len(header.lstrip())]
        self._opened = replace(template, request=f"{before}{{question}}{space}{_HERE}{{response}}")
        self._chat, self._texts = chat, texts

    def tokens_behind(self, group: PreferenceGroup, response: Response, slots: Slots, whole: Rendered) -> int:
        """How many tokens of a conversation begin where the words that show the response do, or later.

        Args:
            slots: media that the response is shown with; whole: the conversation, as it was rendered.
        """
        # without the response's text, which might have the character, too: the last one is ours
        opened = self._opened.conversation(group, replace(response, text="")).showing(slots)
        place = self._chat.prompt(opened, where=place_of(group)).rindex(_HERE)
        _, offsets = self._texts.plain(whole.text)
        return sum(start >= place for start, _ in offsets)


def drawn_order(group: EncodedGroup, *draw: object) -> tuple[int, ...]:
    """An order of a group's responses that follows from the draw, the question and the responses.

    It does not depend on the order in the data, nor on what the query is called, so whoever asks the same asks alike.
    """
    asked = hashlib.blake2b(group.prefix_ids.numpy().tobytes(), digest_size=16)
    asked.update("\0".join(map(str, draw)).encode())

    def rank(number: int) -> bytes:
        own = asked.copy()
        own.update(f"\0{group.branches[number].response_hash}".encode())
        return own.digest()

    return tuple(sorted(range(len(group.branches)), key=rank))


def reading_orders(group: EncodedGroup, orders: Orders) -> list[tuple[int, ...]]:
    """The orders in which a group's responses are read to be scored, always the same for a question and its responses.

    `all`: a drawn order and all that begin at another of its places, so that each response stands once at each place;
    `drawn`: that order alone. Of equal responses the first is read. A group that is read apart has one order, its own.
    """
    if not group.in_turn:
        return [tuple(range(len(group.branches)))]
    hashes = [branch.response_hash for branch in group.branches]
    first = tuple(number for number in drawn_order(group) if hashes.index(hashes[number]) == number)
    turns = len(first) if orders == "all" else 1
    return [first[turn:] + first[:turn] for turn in range(turns)]


def in_order(group: EncodedGroup, order: Sequence[int]) -> EncodedGroup:
    """The group with its responses in another order; those that the order does not name leave it."""
    place = {response: number for number, response in enumerate(order)}
    return replace(
        group,
        branches=tuple(group.branches[response] for response in order),
        columns={name: values[list(order)] for name, values in group.columns.items()},
        pairs=tuple((place[one], place[other]) for one, other in group.pairs if one in place and other in place),
    )
