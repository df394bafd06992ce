"""PreferenceGroup -> EncodedGroup: the group's own processor turns it into one prefix and K branches of tokens.

Every response's complete sequence is rendered by the chat template and tokenized whole; the K sequences are then cut
at their longest common token prefix (but before the first label token). So prefix + branch is, by construction, what
the processor would have produced for that response alone, whatever the template or family.

A family whose processor reads no videos gets a clip's frames as pictures.

The media are processed once per group. The processor's own call expands the first response's placeholders; the other
responses share that head, because a placeholder is a special token and the tokens behind it do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import ProcessorMixin

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError, ModelError
from mmrlhf.media.damage import DAMAGED, Damage
from mmrlhf.tokens.chat import MARK, Chat
from mmrlhf.tokens.length import LengthLimit, place_of
from mmrlhf.tokens.processing import (
    DecodedMedia,
    MediaSettings,
    call_processor,
    decode_media,
    media_tensors,
    refusals,
)
from mmrlhf.tokens.templates import Template
from mmrlhf.tokens.text_tokens import Rendered, TextTokens, beginning_of, common_suffix, shared_prefix
from mmrlhf.tokens.visual import SizedEntry, VisualTokens
from mmrlhf.types import Branch, EncodedGroup, PreferenceGroup, Response

# (token ids (T,), media tensors) -> position ids (A, T); comes from the model family (mmrlhf.models.families).
Positions = Callable[[Tensor, Mapping[str, Tensor]], Tensor]

# What text costs until a tokenizer has been asked (`Encoder.calibrate`): English prose.
_CHARS_PER_TOKEN, _TOKENS_PER_RESPONSE = 3.5, 16
# A character has at most four bytes, and tokenizers fall back to one token a byte; what ends turns takes a few more.
_MOST_PER_CHAR, _TURN_ENDS = 4, 64
# Estimates aim this much above the mean, so that few micro-batches exceed their budget.
_MARGIN = 1.1


class Sequences(NamedTuple):
    """Complete token ids (T,) of every response, which of them are labels (T,), and the group's media tensors."""

    ids: list[Tensor]
    labels: list[Tensor]
    media: dict[str, Tensor]


class Fitted(NamedTuple):
    """Sequences that fit, what they show of each response, tokens that it lost for it, their common prefix's length."""

    sequences: Sequences
    shown: list[Response]
    removed: list[int]
    cut: int


class Encoder:
    """Encodes groups for one processor, template and position function.

    Args:
        processor: the model's own processor.
        template: which conversation the tokens say.
        positions: the family's position function.
        media: how videos become frames.
        max_tokens: longest prefix + branch. A longer response loses its end and is counted (`Branch.truncated`), or its
            group is refused (`too_long`); a longer prompt is an error, and media tokens are never cut.
        too_long: `shorten` or `refuse`.
        room: tokens that stay free behind a context, for what a model writes there (not the end of a critique's turn).
        damage: also gives the media tensors of a damaged copy, under names that begin with `DAMAGED`.
        dimensions: annotated scores that become columns `score_<dimension>` (K,), nan where unknown.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        template: Template,
        positions: Positions,
        media: MediaSettings | None = None,
        max_tokens: int = 8192,
        too_long: str = "shorten",
        room: int = 0,
        damage: Damage | None = None,
        dimensions: Sequence[str] = (),
    ) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = processor.tokenizer
        self.template = template
        self.positions = positions
        self.media = media or MediaSettings()
        self.max_tokens = max_tokens
        self.damage = damage
        self.dimensions = tuple(dimensions)
        self.chat = Chat(processor)
        self.texts = TextTokens(self.tokenizer, add_special_tokens=self.chat.add_special_tokens)
        self.visual = VisualTokens(processor, self.chat, self.media)
        # what is written about a response is read again with the end of its turn
        self._ending = len(self.texts.offsets(self.chat.turn_end + template.closing))
        self.room = room + self._ending if room and template.shows_response else room
        self.limit = LengthLimit(max_tokens, too_long, self.room, template.shows_response, self.texts)
        self._text_factor = 1.0

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an assistant turn: the tokenizer's end token, and what the chat template puts there."""
        return list(self.chat.end_tokens)

    def __call__(self, group: PreferenceGroup) -> EncodedGroup:
        """Encode a group with its assistant turns as labels.

        Raises:
            DataError: unreadable media, or a prompt longer than `max_tokens`.
        """
        return self._encode(group, group.responses, with_answer=True)

    def context(self, group: PreferenceGroup) -> EncodedGroup:
        """Encode what comes before the assistant turn: the context that a critique or an answer is generated from.

        A template whose user turn does not show the response (answers) has one branch, otherwise one per response.
        """
        return self._encode(group, self._asked(group), with_answer=False)

    def foresee(self, group: PreferenceGroup, entry: SizedEntry, *, with_answer: bool = True) -> list[int]:
        """Tokens that each response will lose, from the group's text and its index entry: no medium is decoded.

        Args:
            group: its media count nothing, but that there are some: without any, it is text alone.
            entry: what the index says of it.
            with_answer: encoded whole, or as a `context`.

        Raises:
            DataError: what encoding the group would raise, but for media that cannot be read. Where time marks of a
                clip's frames are tokens, a few tokens too many may be found only then.
        """
        responses = group.responses if with_answer else self._asked(group)
        with _naming(group):
            expanded = self.visual.exact(entry).expanded if group.media else 0
        counts = self.visual.placeholders(entry) if group.media else (0, 0)
        head = torch.zeros(expanded, dtype=torch.int64)

        def tokenize(rendered: Sequence[Rendered]) -> Sequences:
            plain, is_label = self.texts.labelled(rendered)
            ids = [torch.cat([head, torch.tensor(own, dtype=torch.int64)]) for own in plain]
            return Sequences(ids, [torch.tensor([False] * len(head) + flags) for flags in is_label], {})

        fitted = self._fit(group, responses, counts, tokenize, with_answer)
        cut = zip(fitted.sequences.ids, responses, fitted.removed, strict=True)
        return [removed + len(ids) - self.limit.kept(group, ids, response) for ids, response, removed in cut]

    def surely_fits(self, entry: SizedEntry) -> bool:
        """Whether a group fits however its text is tokenized, at sizes near its media's."""
        visual = self.estimate_visual_tokens(entry)
        refused = not visual and (entry.num_images or entry.num_frames)
        most = self._frame_tokens + 2 * visual + _MOST_PER_CHAR * (entry.text_chars + entry.critique_chars)
        return not refused and most + self.room <= self.max_tokens

    def room_behind(self, context: EncodedGroup, branch: int) -> int:
        """Tokens that an assistant's text may have behind a context, so that nothing before it has to be shortened."""
        return self.max_tokens - len(context.prefix_ids) - len(context.branches[branch].ids) - self._ending

    def beginning(self, text: str, num_tokens: int) -> str:
        """What of an assistant's text has at most so many tokens."""
        marked = self.chat.mark(text)
        _, offsets = self.texts.plain(marked)
        # A begin-of-text token that is counted here, where the text begins nothing, only takes one token of the room.
        return text if len(offsets) <= num_tokens else beginning_of(marked, offsets, num_tokens).replace(MARK, "")

    def stock_inputs(
        self, group: PreferenceGroup, response: Response, *, with_answer: bool = True
    ) -> tuple[dict[str, Tensor], str]:
        """What a stock model is given for one response alone: the processor's own tensors, and the labels' text."""
        media = self._decode(group)
        rendered = self._render(group, response, media.counts, with_answer)
        text = self.chat.without_spellings(rendered.text)
        return self._call_processor(text, media, place_of(group)), rendered.text[rendered.first : rendered.last]

    def estimate_tokens(self, entry: SizedEntry) -> int:
        """Predict a group's tokens from its index entry alone, without reading it.

        Pictures are counted by the processor itself on blank ones of about the same size; text by characters, at a rate
        that `calibrate` learns.
        """
        return self.estimate_visual_tokens(entry) + math.ceil(self._text_factor * self._estimate_text(entry))

    def calibrate(self, samples: Iterable[tuple[SizedEntry, PreferenceGroup]]) -> None:
        """Learn from some groups what text costs with this tokenizer and template; media are not decoded for it."""
        estimated = true = 0.0
        for entry, group in samples:
            try:
                true += self(group.without_media()).num_tokens
            except DataError:  # training says what is wrong with it
                continue
            estimated += self._estimate_text(entry)
        self._text_factor = _MARGIN * true / estimated if estimated else 1.0

    def _estimate_text(self, entry: SizedEntry) -> float:
        chars = entry.text_chars + (entry.critique_chars if self.template.name == "critique" else 0)
        return chars / _CHARS_PER_TOKEN + _TOKENS_PER_RESPONSE * entry.num_responses

    def estimate_visual_tokens(self, entry: SizedEntry) -> int:
        """Predict the tokens of a group's media from its index entry alone; 0 where the processor refuses them."""
        return self.visual.estimate(entry)

    @cached_property
    def _frame_tokens(self) -> int:
        """Tokens of a conversation without its prompt, response and media, with room for the ends of its turns."""
        nothing = PreferenceGroup("", Conversation.about(""), (Response("?"),))
        text = self.chat.prompt(self.chat.mark(self.template.user(nothing, nothing.responses[0])))
        return len(self.texts.plain(text)[0]) + _TURN_ENDS

    def _asked(self, group: PreferenceGroup) -> tuple[Response, ...]:
        """Responses whose contexts differ: one, where the user's turn shows none."""
        users = {self.template.user(group, response) for response in group.responses}
        return group.responses[:1] if len(users) == 1 else group.responses

    def _encode(self, group: PreferenceGroup, responses: tuple[Response, ...], *, with_answer: bool) -> EncodedGroup:
        decoded = self._decode(group)
        tokenize = partial(self._tokenize, group, decoded)
        fitted = self._fit(group, responses, decoded.counts, tokenize, with_answer)
        (sequences, labels, media), shown, removed, cut = fitted
        branches = [
            replace(self._branch(group, ids, is_label, cut, media, response, already), shown=kept.text)
            for ids, is_label, response, already, kept in zip(sequences, labels, responses, removed, shown, strict=True)
        ]
        return EncodedGroup(
            key=group.key,
            prefix_ids=sequences[0][:cut],
            prefix_positions=self._positions(group, sequences[0], media)[:, :cut],
            branches=tuple(branches),
            media=media,
            num_images=len(decoded.images),
            num_videos=len(decoded.clips),
            pairs=group.ranked_pairs() if with_answer or len(responses) == len(group.responses) else (),
            columns=self._columns(responses),
        )

    def _fit(
        self,
        group: PreferenceGroup,
        responses: tuple[Response, ...],
        counts: tuple[int, int],
        tokenize: Callable[[Sequence[Rendered]], Sequences],
        with_answer: bool,
    ) -> Fitted:
        """Shorten shown responses until all sequences fit; raises DataError where that does not help."""
        shown, removed = list(responses), [0] * len(responses)
        while True:
            found = tokenize([self._render(group, response, counts, with_answer) for response in shown])
            over = [self.limit.excess(*each, with_answer) for each in zip(found.ids, found.labels, strict=True)]
            if max(over) <= 0 or not self.template.shows_response:
                break
            for place, excess in enumerate(over):
                if excess > 0:
                    shown[place], cut_now = self.limit.shorten(group, shown[place], excess)
                    removed[place] += cut_now
        cut = _cut_point(found.ids, found.labels)
        self.limit.check(group, cut, max(over))
        return Fitted(found, shown, removed, cut)

    def _columns(self, responses: tuple[Response, ...]) -> dict[str, Tensor]:
        rank = [math.nan if response.rank is None else float(response.rank) for response in responses]
        scores = {name: [response.scores.get(name, math.nan) for response in responses] for name in self.dimensions}
        return {"rank": torch.tensor(rank)} | {f"score_{name}": torch.tensor(each) for name, each in scores.items()}

    def _decode(self, group: PreferenceGroup) -> DecodedMedia:
        return self.visual.readable(decode_media(group, self.media))

    def _render(
        self, group: PreferenceGroup, response: Response, counts: tuple[int, int], with_answer: bool
    ) -> Rendered:
        """The conversation as text with one placeholder per medium, and the characters between which labels lie."""
        user = self.chat.mark(self.template.user(group, response))
        answer = self.template.assistant(group, response) if with_answer else None
        text = self.chat.prompt(user, num_images=counts[0], num_videos=counts[1])
        if answer is None:
            return Rendered(text, len(text), len(text))
        turn = text + self.chat.mark(answer) + self.chat.turn_end
        return Rendered(turn + self.template.closing, len(text), len(turn))

    def _tokenize(self, group: PreferenceGroup, decoded: DecodedMedia, rendered: Sequence[Rendered]) -> Sequences:
        plain, is_label = self.texts.labelled(rendered)
        head, kept, media = torch.zeros(0, dtype=torch.int64), 0, {}
        if decoded:
            # The processor reads special tokens wherever they stand, so it gets the text without a user's.
            text = self.chat.without_spellings(rendered[0].text)
            output = self._call_processor(text, decoded, place_of(group))
            short = plain[0] if text == rendered[0].text else self.texts.plain(text)[0]
            head, kept = self._expanded_head(group, output["input_ids"][0], short, plain, is_label)
            media = media_tensors(output) | self._damaged(group, text, decoded)
        sequences = [torch.cat([head, torch.tensor(ids[kept:], dtype=torch.int64)]) for ids in plain]
        labels = [torch.tensor([False] * len(head) + flags[kept:]) for flags in is_label]
        return Sequences(sequences, labels, media)

    def _damaged(self, group: PreferenceGroup, text: str, decoded: DecodedMedia) -> dict[str, Tensor]:
        """Media tensors of a damaged copy, where wanted; of the originals' size, it needs the same tokens."""
        if self.damage is None:
            return {}
        output = self._call_processor(text, decoded.damaged(self.damage, group.key), place_of(group))
        return {DAMAGED + name: tensor for name, tensor in media_tensors(output).items()}

    def _call_processor(self, text: str, media: DecodedMedia, where: str) -> dict[str, Tensor]:
        add_special_tokens = self.chat.add_special_tokens
        return call_processor(self.processor, text, media, add_special_tokens=add_special_tokens, where=where)

    def _positions(self, group: PreferenceGroup, ids: Tensor, media: Mapping[str, Tensor]) -> Tensor:
        with refusals(place_of(group)):
            return self.positions(ids, media)

    def _expanded_head(
        self,
        group: PreferenceGroup,
        expanded: Tensor,
        short: list[int],
        plain: list[list[int]],
        is_label: list[list[bool]],
    ) -> tuple[Tensor, int]:
        """The expanded ids up to where they end like the ids they were made of, and how many plain ids these cover.

        Args:
            short: the ids of the text that was expanded: the first response's, or those without a user's spellings.

        Raises:
            ModelError: the processor changed text that differs between responses, or labels.
        """
        covered = len(short) - common_suffix(expanded.tolist(), short)
        if covered > shared_prefix([*plain, short], [*is_label, [False] * len(short)]):
            raise ModelError(
                "this processor changes the text behind its media, so responses cannot share a prompt",
                where=f"key {group.key}",
                given=type(self.processor).__name__,
                expected="a processor that only expands media placeholders",
            )
        return expanded[: len(expanded) - (len(short) - covered)], covered

    def _branch(
        self,
        group: PreferenceGroup,
        ids: Tensor,
        is_label: Tensor,
        cut: int,
        media: Mapping[str, Tensor],
        response: Response,
        removed: int,
    ) -> Branch:
        """A response's branch; the end of an answer that does not fit is cut.

        Raises:
            DataError: it does not fit, and `too_long=refuse`.
        """
        kept = self.limit.kept(group, ids, response)
        return Branch(
            ids=ids[cut:kept],
            positions=self._positions(group, ids, media)[:, cut:kept],
            labels=is_label[cut:kept],
            response_hash=response.hash,
            truncated=removed + len(ids) - kept,
        )


def _cut_point(sequences: list[Tensor], labels: list[Tensor]) -> int:
    """Length of the longest common token prefix that leaves every label, and at least one token, to each branch."""
    shared = shared_prefix([ids.tolist() for ids in sequences], [flags.tolist() for flags in labels])
    return min(shared, min(len(ids) for ids in sequences) - 1)


@contextmanager
def _naming(group: PreferenceGroup) -> Iterator[None]:
    """Let a refusal of media of some size name the group that has them."""
    try:
        yield
    except DataError as error:
        error.where = place_of(group)
        raise
