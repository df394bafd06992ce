"""What queries' texts cost in tokens, from the numbers of characters in their index entries: no text is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

from mmrlhf.conversation import Conversation
from mmrlhf.tokens.chat import Chat
from mmrlhf.tokens.templates import Template
from mmrlhf.tokens.text_tokens import TextTokens
from mmrlhf.tokens.visual import SizedEntry
from mmrlhf.types import PreferenceGroup, Response

# What text costs until a tokenizer has been asked (`TextCost.learn`): English prose.
_CHARS_PER_TOKEN, _TOKENS_PER_RESPONSE = 3.5, 16
# A character has at most four bytes, and tokenizers fall back to one token a byte; what ends turns takes a few more.
_MOST_PER_CHAR, _TURN_ENDS = 4, 64
# Estimates aim this much above the mean, so that few micro-batches exceed their budget.
_MARGIN = 1.1


class TextCost:
    """Predicts the tokens of texts, at a rate that is learned from some of them.

    Args:
        template: which conversation the tokens say.
        chat, texts: the model's own chat template and tokenizer.
        in_turn: whether a query's responses stand behind one another.
    """

    def __init__(self, template: Template, chat: Chat, texts: TextTokens, *, in_turn: bool) -> None:
        self._template, self._chat, self._texts, self._in_turn = template, chat, texts, in_turn
        self._factor = 1.0

    def learn(self, counted: Iterable[tuple[SizedEntry, int]]) -> None:
        """Learn the rate from queries whose texts' tokens have been counted."""
        estimated = true = 0.0
        for entry, num_tokens in counted:
            true += num_tokens
            estimated += self._by_characters(entry)
        self._factor = _MARGIN * true / estimated if estimated else 1.0

    def estimate(self, entry: SizedEntry) -> int:
        """Predict the tokens of a query's text, a little above the mean."""
        return math.ceil(self._factor * self._by_characters(entry))

    def most(self, entry: SizedEntry) -> int:
        """How many tokens a query's text has at most, however it is tokenized."""
        frames = entry.num_turns + (entry.num_responses if self._in_turn else 0)
        return frames * self._frame_tokens + _MOST_PER_CHAR * (entry.text_chars + entry.critique_chars)

    def _by_characters(self, entry: SizedEntry) -> float:
        chars = entry.text_chars + (entry.critique_chars if self._template.name == "critique" else 0)
        return chars / _CHARS_PER_TOKEN + _TOKENS_PER_RESPONSE * entry.num_responses

    @cached_property
    def _frame_tokens(self) -> int:
        """Tokens of a conversation without its prompt, response and media, with room for the ends of its turns."""
        nothing = PreferenceGroup("", Conversation.about(""), (Response("?"),))
        text = self._chat.prompt(self._template.conversation(nothing, nothing.responses[0]))
        return len(self._texts.plain(text)[0]) + _TURN_ENDS
