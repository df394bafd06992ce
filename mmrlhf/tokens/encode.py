"""PreferenceGroup -> EncodedGroup: the group's own processor turns it into one prefix and K branches of tokens.

Every response's complete sequence is rendered by the chat template and tokenized whole; the K sequences are then cut
at their longest common token prefix (but before the first label token). So prefix + branch is, by construction, what
the processor would have produced for that response alone, whatever the template or family.

A family whose processor reads no videos gets a clip's frames as pictures.

Media of one response are processed for that response alone. Then no media are in the prefix: the branches begin before
the first of them. Responses that are read in turn (`mmrlhf.tokens.in_turn`) have branches that begin before the words
that show them, however alike they begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from mmrlhf.errors import DataError
from mmrlhf.media.damage import Damage
from mmrlhf.tensors import Branch, EncodedGroup
from mmrlhf.tokens.chat import MARK, Chat
from mmrlhf.tokens.fitting import Fitting
from mmrlhf.tokens.in_turn import Reading, ResponseStart
from mmrlhf.tokens.length import LengthLimit, place_of
from mmrlhf.tokens.places import check_places, naming
from mmrlhf.tokens.processing import BlankMedium, DecodedMedia, MediaSettings, decode_media, refusals
from mmrlhf.tokens.sequences import SequenceMaker, Sequences
from mmrlhf.tokens.templates import Template
from mmrlhf.tokens.text_cost import TextCost
from mmrlhf.tokens.text_tokens import Rendered, TextTokens, beginning_of
from mmrlhf.tokens.visual import SizedEntry, VisualTokens
from mmrlhf.types import PreferenceGroup, Response

# (token ids (T,), media tensors) -> position ids (A, T); comes from the model family (mmrlhf.models.families).
Positions = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


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
        reading: whether responses are read `apart` or `in_turn`; then all of a query have to fit together. Those with
            media of their own are read apart in any case.
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
        reading: Reading = "apart",
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
        self.sequences = SequenceMaker(processor, template, self.chat, self.texts, damage)
        self.visual = VisualTokens(processor, self.chat, self.media)
        # what is written about a response is read again with the end of its turn
        self._ending = len(self.texts.offsets(self.chat.turn_end + template.closing))
        self.room = room + self._ending if room and template.shown else room
        self.reading: Reading = reading
        self.in_turn = reading == "in_turn"
        self.limit = LengthLimit(max_tokens, too_long, self.room, template.shown, self.texts)
        start = ResponseStart(template, self.chat, self.texts) if self.in_turn else None
        self._fitting = Fitting(self.sequences, self.limit, start)
        self._text_cost = TextCost(template, self.chat, self.texts, in_turn=self.in_turn)

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
        check_places(group, responses)
        with naming(group):
            visual = [self.visual.exact(media) for media in self._sized(group, entry, responses)]
        heads = [torch.zeros(each.expanded, dtype=torch.int64) for each in visual]

        def tokenize(rendered: Sequence[Rendered]) -> Sequences:
            plain, is_label = self.texts.labelled(rendered)
            ids = [torch.cat([head, torch.tensor(own)]) for head, own in zip(heads, plain, strict=True)]
            labels = [torch.tensor([False] * len(head) + own) for head, own in zip(heads, is_label, strict=True)]
            return Sequences(ids, labels, [{}] * len(ids))

        slots = [each.slots for each in visual]
        in_turn = self._is_in_turn(group)
        fitted = self._fitting.fit(group, responses, slots, tokenize, with_answer=with_answer, in_turn=in_turn)
        cut = zip(fitted.sequences.ids, responses, fitted.removed, strict=True)
        return [removed + len(ids) - self.limit.kept(group, ids, response) for ids, response, removed in cut]

    def surely_fits(self, entry: SizedEntry) -> bool:
        """Whether a group fits however its text is tokenized, at sizes near its media's."""
        visual = self.visual.estimate(entry)
        refused = not visual and (entry.num_images or entry.num_frames)
        return not refused and self._text_cost.most(entry) + 2 * visual + self.room <= self.max_tokens

    def room_behind(self, context: EncodedGroup, branch: int) -> int:
        """Tokens that an assistant's text may have behind a context, so that nothing before it has to be shortened."""
        before = context.branches if context.in_turn else context.branches[branch : branch + 1]
        return self.max_tokens - len(context.prefix_ids) - sum(len(each.ids) for each in before) - self._ending

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
        check_places(group, [response])
        media = self._decode(group, response)
        rendered = self.sequences.render(group, response, media.slots, with_answer)
        text = self.chat.without_spellings(rendered.text)
        return self.sequences.call_processor(text, media, place_of(group)), rendered.text[
            rendered.first : rendered.last
        ]

    def estimate_tokens(self, entry: SizedEntry) -> int:
        """Predict a group's tokens from its index entry alone, without reading it.

        Pictures are counted by the processor itself on blank ones of about the same size; text by characters, at a rate
        that `calibrate` learns.
        """
        return self.visual.estimate(entry) + self._text_cost.estimate(entry)

    def calibrate(self, samples: Iterable[tuple[SizedEntry, PreferenceGroup]]) -> None:
        """Learn from some groups what text costs with this tokenizer and template; media are not decoded for it."""
        self._text_cost.learn(self._counted(samples))

    def _counted(self, samples: Iterable[tuple[SizedEntry, PreferenceGroup]]) -> Iterator[tuple[SizedEntry, int]]:
        for entry, group in samples:
            try:
                yield entry, self(group.without_media()).num_tokens
            except DataError:  # training says what is wrong with it
                continue

    def _is_in_turn(self, group: PreferenceGroup) -> bool:
        """Whether a query's responses are read in turn: where they share the query's media."""
        return self.in_turn and not group.has_own_media

    def _asked(self, group: PreferenceGroup) -> tuple[Response, ...]:
        """Responses whose contexts differ: one, where the user's turn shows none, asked with the group's media."""
        if not self.template.shown:
            return (replace(group.responses[0], media=()) if group.responses else Response(""),)
        if self.in_turn:  # equal responses differ in what stands before them
            return group.responses
        contexts = {(self.template.conversation(group, response), response.media) for response in group.responses}
        return group.responses[:1] if len(contexts) == 1 else group.responses

    def _encode(self, group: PreferenceGroup, responses: tuple[Response, ...], *, with_answer: bool) -> EncodedGroup:
        check_places(group, responses)
        own = any(response.media for response in responses)
        # Equal media of responses are the group's, decoded once.
        decoded = [self._decode(group, response) for response in (responses if own else responses[:1])]
        decoded = decoded if own else decoded * len(responses)
        tokenize = partial(self.sequences.tokenize_apart if own else self.sequences.tokenize, group, decoded)
        slots = [each.slots for each in decoded]
        in_turn = self._is_in_turn(group)
        fitted = self._fitting.fit(group, responses, slots, tokenize, with_answer=with_answer, in_turn=in_turn)
        (sequences, labels, media, _), shown, removed, cut = fitted
        branches = [
            replace(
                self._branch(group, ids, is_label, cut, tensors, response, already),
                shown=kept.text,
                **(_shown_by(each, tensors) if own else {}),
            )
            for ids, is_label, tensors, each, response, already, kept in zip(
                sequences, labels, media, decoded, responses, removed, shown, strict=True
            )
        ]
        return EncodedGroup(
            key=group.key,
            prefix_ids=sequences[0][:cut],
            prefix_positions=self._positions(group, sequences[0], media[0])[:, :cut],
            branches=tuple(branches),
            **(_shown_by(DecodedMedia(), {}) if own else _shown_by(decoded[0], media[0])),
            pairs=group.ranked_pairs() if with_answer or len(responses) == len(group.responses) else (),
            columns=self._columns(responses),
            in_turn=in_turn,
        )

    def _columns(self, responses: tuple[Response, ...]) -> dict[str, Tensor]:
        rank = [math.nan if response.rank is None else float(response.rank) for response in responses]
        scores = {name: [response.scores.get(name, math.nan) for response in responses] for name in self.dimensions}
        return {"rank": torch.tensor(rank)} | {f"score_{name}": torch.tensor(each) for name, each in scores.items()}

    def _decode(self, group: PreferenceGroup, response: Response) -> DecodedMedia:
        return self.visual.readable(decode_media(group, self.media, group.shown_to(response)))

    def _sized(
        self, group: PreferenceGroup, entry: SizedEntry, responses: Sequence[Response]
    ) -> list[tuple[BlankMedium, ...]]:
        """What the index says of the media that each response is shown."""
        of_group, *own = self.visual.sized(entry, group)
        of_response = {response.media: sizes for response, sizes in zip(group.responses, own, strict=True)}
        return [of_response[response.media] if response.media else of_group for response in responses]

    def _positions(self, group: PreferenceGroup, ids: Tensor, media: Mapping[str, Tensor]) -> Tensor:
        with refusals(place_of(group)):
            return self.positions(ids, media)

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


def _shown_by(decoded: DecodedMedia, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a group or branch that say which media stand in it."""
    return {"media": tensors, "num_images": len(decoded.images), "num_videos": len(decoded.clips)}
