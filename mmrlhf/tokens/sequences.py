"""The K complete token sequences of a query: what is asked and answered as text, then as ids with expanded media.

The media are processed once per group. The processor's own call expands the first response's placeholders; the other
responses share that head, because a placeholder is a special token and the tokens behind it do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import ProcessorMixin

from mmrlhf.conversation import Slot
from mmrlhf.errors import ModelError
from mmrlhf.media.damage import DAMAGED, Damage
from mmrlhf.tokens.chat import Chat
from mmrlhf.tokens.length import place_of
from mmrlhf.tokens.processing import DecodedMedia, call_processor, media_tensors
from mmrlhf.tokens.templates import Template
from mmrlhf.tokens.text_tokens import Rendered, TextTokens, common_suffix, shared_prefix
from mmrlhf.types import PreferenceGroup, Response

# What stands in a conversation for each medium.
Slots = Sequence[tuple[Slot, ...]]


class Sequences(NamedTuple):
    """Complete token ids (T,) of every response, which of them are labels (T,), and its media tensors.

    before_media: how many tokens stand before the first medium of any.
    """

    ids: list[Tensor]
    labels: list[Tensor]
    media: list[dict[str, Tensor]]
    before_media: int = 0


class SequenceMaker:
    """Renders conversations with one processor's chat template and tokenizes them.

    Args:
        damage: also gives the media tensors of a damaged copy, under names that begin with `DAMAGED`.
    """

    def __init__(
        self, processor: ProcessorMixin, template: Template, chat: Chat, texts: TextTokens, damage: Damage | None
    ) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = processor.tokenizer
        self.template, self.chat, self.texts, self.damage = template, chat, texts, damage

    def render(self, group: PreferenceGroup, response: Response, slots: Slots, with_answer: bool) -> Rendered:
        """The conversation as text with one placeholder per medium, and the characters between which labels lie."""
        answer = self.template.assistant(group, response) if with_answer else None
        conversation = self.template.conversation(group, response).showing(slots)
        text = self.chat.prompt(conversation, where=place_of(group))
        if answer is None:
            return Rendered(text, len(text), len(text))
        turn = text + self.chat.mark(answer) + self.chat.turn_end
        return Rendered(turn + self.template.closing, len(text), len(turn))

    def tokenize_apart(
        self, group: PreferenceGroup, decoded: Sequence[DecodedMedia], rendered: Sequence[Rendered]
    ) -> Sequences:
        """Each response with its own media; they share what is before the first medium of any."""
        found = [self.tokenize(group, [own], [each]) for own, each in zip(decoded, rendered, strict=True)]
        before = min(each.before_media for each in found)
        if not before:
            raise ModelError(
                "this model's chat template begins with the media, so responses with media of their own share nothing",
                where=place_of(group),
                given=type(self.processor).__name__,
                expected="a template that writes something before the first medium",
                fix="leave such records out, or run responses in rows of their own",
            )
        ids, labels, media = ([getattr(each, name)[0] for each in found] for name in ("ids", "labels", "media"))
        return Sequences(ids, labels, media, before)

    def tokenize(
        self, group: PreferenceGroup, decoded: Sequence[DecodedMedia], rendered: Sequence[Rendered]
    ) -> Sequences:
        """Responses that are shown the same media, those of the first."""
        plain, is_label = self.texts.labelled(rendered)
        head, kept, media = torch.zeros(0, dtype=torch.int64), 0, {}
        before = len(plain[0])
        if decoded[0]:
            expanded, media = self._expanded(group, rendered[0].text, decoded[0])
            head, kept = self._expanded_head(group, expanded, plain, is_label)
            before = self._before_media(plain[0], expanded)
        sequences = [torch.cat([head, torch.tensor(ids[kept:], dtype=torch.int64)]) for ids in plain]
        labels = [torch.tensor([False] * len(head) + flags[kept:]) for flags in is_label]
        return Sequences(sequences, labels, [media] * len(plain), before)

    def _expanded(self, group: PreferenceGroup, marked: str, decoded: DecodedMedia) -> tuple[list[int], dict]:
        """Token ids of a text whose placeholders the processor expands, and the media tensors.

        The processor reads special tokens wherever they stand. Where a user spelled some, it gets the text without
        these, and what it wrote for the placeholders is put into the text that has them.
        """
        text = self.chat.without_spellings(marked)
        spelled = text != marked
        output = self.call_processor(text, decoded, place_of(group), replacements=spelled)
        media = media_tensors(output) | self._damaged(group, text, decoded)
        if not spelled:
            return output["input_ids"][0].tolist(), media
        instead = iter(output["text_replacement_offsets"][0])
        written = self.chat.expand(marked, lambda: next(instead)["replacement"])
        return self.texts.plain(written)[0], media

    def _before_media(self, short: Sequence[int], expanded: Sequence[int]) -> int:
        """How many tokens stand before the first medium, expanded or not."""
        placeholders = set(self.tokenizer.convert_tokens_to_ids(self.chat.placeholders))
        first = next((place for place, token in enumerate(short) if token in placeholders), len(short))
        same = next((n for n, pair in enumerate(zip(short, expanded, strict=False)) if pair[0] != pair[1]), first)
        return min(first, same)

    def _damaged(self, group: PreferenceGroup, text: str, decoded: DecodedMedia) -> dict[str, Tensor]:
        """Media tensors of a damaged copy, where wanted; of the originals' size, it needs the same tokens."""
        if self.damage is None:
            return {}
        output = self.call_processor(text, decoded.damaged(self.damage, group.key), place_of(group))
        return {DAMAGED + name: tensor for name, tensor in media_tensors(output).items()}

    def call_processor(
        self, text: str, media: DecodedMedia, where: str, *, replacements: bool = False
    ) -> dict[str, Any]:
        add = self.chat.add_special_tokens
        return call_processor(
            self.processor, text, media, add_special_tokens=add, where=where, replacements=replacements
        )

    def _expanded_head(
        self, group: PreferenceGroup, expanded: list[int], plain: list[list[int]], is_label: list[list[bool]]
    ) -> tuple[Tensor, int]:
        """The first response's expanded ids up to where they end like its plain ones, and how many these cover.

        Raises:
            ModelError: the processor changed text that differs between responses, or labels.
        """
        short = plain[0]
        covered = len(short) - common_suffix(expanded, short)
        if covered > shared_prefix(plain, is_label):
            raise ModelError(
                "this processor changes the text behind its media, so responses cannot share a prompt",
                where=f"key {group.key}",
                given=type(self.processor).__name__,
                expected="a processor that only expands media placeholders",
            )
        return torch.tensor(expanded[: len(expanded) - (len(short) - covered)], dtype=torch.int64), covered
