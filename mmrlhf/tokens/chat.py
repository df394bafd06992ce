"""What a model's chat template and tokenizer put around texts: prompts, turn ends, begin-of-text, placeholders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Part, Role, Slot, Turn
from mmrlhf.errors import DataError, ModelError
from mmrlhf.processes import work_limit
from mmrlhf.text import first_line

# a real template takes milliseconds
_TEMPLATE_SECONDS = 10.0
_SENTINEL = "reply"
_ASKED = Conversation.about("ask")
# Of each turn: who says it, which kinds of parts (str or Slot), and the places among them.
_Form = tuple[tuple[Role, tuple[type, ...], tuple[Slot, ...]], ...]
# Marks a place in a text; of Unicode's private use, it is no character of anyone's text.
MARK = "\ue0f5"


class Chat:
    """The conversation format of one processor, read off its chat template.

    Attributes:
        turn_end: what follows an assistant's text, up to and including the first token of its own (<|im_end|>).
        end_tokens: ids that end an assistant turn: the tokenizer's end token, and the chat template's.
        add_special_tokens: whether the tokenizer has to put its begin-of-text token before a conversation; not where
            the template writes that token itself.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor: Any = processor
        tokenizer: Any = processor.tokenizer
        self.turn_end, end_token = self._find_turn_end(tokenizer)
        self.end_tokens = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end_token)})
        begin, asked = tokenizer.bos_token, self._apply(_messages(_ASKED), add_generation_prompt=True)
        self.add_special_tokens = not (begin and asked.startswith(begin))
        owners = (processor, tokenizer)
        names = ("image_token", "video_token")
        placeholders = {t for o in owners for n in names if isinstance(t := getattr(o, n, None), str)}
        spelled = self._spelled(tokenizer, placeholders | {end_token})
        self._spellings = re.compile("|".join(map(re.escape, spelled)))
        self._marked = re.compile("|".join(re.escape(token[0] + MARK + token[1:]) for token in spelled))
        own = [token for token in spelled if token in placeholders]
        self._placeholders = {slot: self._placeholder(slot, [*own, *spelled]) for slot in (IMAGE, VIDEO)}
        self._refused = lru_cache(maxsize=1024)(self._why_refused)

    def prompt(self, conversation: Conversation, *, where: str = "") -> str:
        """The turns with one placeholder for each medium, and the opening of the answer; texts are marked (`mark`).

        Args:
            where: names the query in an error.

        Raises:
            DataError: this template refuses the conversation, or loses a part of it.
        """
        form = tuple((turn.role, tuple(map(type, turn.parts)), turn.slots) for turn in conversation.turns)
        reason = self._refused(form)
        if reason is not None:
            raise self._refusal(conversation, reason, where)
        marked = conversation.with_texts(self.mark)
        return self._apply(_messages(marked), add_generation_prompt=True, conversation=conversation, where=where)

    @property
    def placeholders(self) -> list[str]:
        """The tokens that this template writes for media."""
        return sorted({token for token in self._placeholders.values() if token is not None})

    def media_only(self, slots: Sequence[Slot]) -> str:
        """A user turn without text, to count what media cost."""
        return self._apply(_messages(Conversation((Turn("user", tuple(slots)),))))

    def mark(self, text: str) -> str:
        """Put `MARK` behind the first character of whatever in a text of the user's spells a token of the template's.

        Cut there, the spelling is tokenized as two pieces of ordinary text, so it can end no turn and be no medium.
        """
        return self._spellings.sub(lambda found: found[0][0] + MARK + found[0][1:], text.replace(MARK, ""))

    def expand(self, marked: str, written: Callable[[], str]) -> str:
        """A marked text with something else for each of its placeholders, one after another."""
        return re.sub("|".join(map(re.escape, self.placeholders)), lambda _: written(), marked)

    def without_spellings(self, marked: str) -> str:
        """A text that `mark` marked, without what it marked."""
        return self._marked.sub("", marked)

    def _why_refused(self, form: _Form) -> str | None:
        """Try a conversation of this form, with texts that can be told apart; why it may not be rendered, or None."""
        turns, texts = [], []
        for role, kinds, slots in form:
            places = iter(slots)
            parts: list[Part] = []
            for kind in kinds:
                parts.append(next(places) if kind is Slot else f"{MARK}{len(texts)}{MARK}")
                texts += [(role, parts[-1])] if kind is not Slot else []
            turns.append(Turn(role, tuple(parts)))
        conversation = Conversation(tuple(turns))
        try:
            rendered = self._apply(_messages(conversation), add_generation_prompt=True, conversation=conversation)
        except DataError as error:
            return str(error.given)
        lost = {role: None for role, text in texts if rendered.count(str(text)) != 1}
        if lost:
            return f"it loses or repeats what is said by: {', '.join(lost)}"
        for slot in (IMAGE, VIDEO):
            wanted, found = conversation.slots.count(slot), self._written(slot, rendered, conversation.slots)
            if found != wanted:
                return f"it writes {found} of {wanted} {slot.kind}s"
        return None

    def _written(self, slot: Slot, rendered: str, slots: Sequence[Slot]) -> int:
        """How many media of a kind a template wrote; where two kinds have one placeholder, the other's are as asked."""
        token = self._placeholders[slot]
        if token is None:
            return 0
        alike = [other for other in slots if other != slot and self._placeholders[other] == token]
        return rendered.count(token) - len(alike)

    def _refusal(self, conversation: Conversation, reason: str, where: str) -> DataError:
        name = getattr(self._processor.tokenizer, "name_or_path", None)
        return DataError(
            "this model's chat template cannot say this conversation",
            where=where,
            given=f"{reason} ({conversation.form or 'a question with its media in front'})",
            expected="turns and media that the template has places for",
            fix=f"leave the record out, or use another family than that of {name or 'this checkpoint'}",
        )

    def _apply(
        self,
        messages: list[dict[str, Any]],
        conversation: Conversation | None = None,
        where: str = "",
        **arguments: Any,
    ) -> str:
        try:
            with work_limit(_TEMPLATE_SECONDS):
                text = self._processor.apply_chat_template(messages, tokenize=False, **arguments)
        except TimeoutError as error:
            raise ModelError(
                "this checkpoint's chat template does not come to an end",
                where=getattr(self._processor.tokenizer, "name_or_path", None) or "chat_template",
                given=f"one conversation {error}",
                expected="a template that writes a conversation in a moment",
                fix="do not trust this checkpoint; its chat_template.jinja (or tokenizer_config.json) holds the loop",
            ) from error
        except TemplateError as error:
            raise self._refusal(conversation or _ASKED, f"it refuses: {first_line(error)}", where) from error
        assert isinstance(text, str)
        return text

    def _placeholder(self, slot: Slot, tokens: Sequence[str]) -> str | None:
        """The token of which a turn has one more where it shows a medium; None where the template has none."""
        turns = (Conversation.about("ask", [slot] * number) for number in (1, 0))
        one, none = (self._apply(_messages(turn)) for turn in turns)
        return next((token for token in tokens if one.count(token) == none.count(token) + 1), None)

    def _spelled(self, tokenizer: Any, others: set[str]) -> list[str]:
        """Texts that the tokenizer or processor reads as a token of the template's, the longest first.

        Added tokens that are no special ones and that the template does not write are ordinary words (Gemma's HTML).
        """
        written = self._apply(_messages(Conversation.about("ask", [IMAGE])), add_generation_prompt=True)
        added = tokenizer.added_tokens_decoder.values()
        found = {
            token.content for token in added if token.special or (token.content.strip() and token.content in written)
        }
        found |= {*tokenizer.all_special_tokens, *others}
        return sorted((token for token in found if len(token.strip()) > 1), key=lambda token: (-len(token), token))

    def _find_turn_end(self, tokenizer: Any) -> tuple[str, str]:
        """What the template puts behind an assistant's text, up to the first added token; and that token."""
        text = self._apply(_messages(Conversation((*_ASKED.turns, Turn("assistant", (_SENTINEL,))))))
        behind = text[text.rindex(_SENTINEL) + len(_SENTINEL) :]
        # Not only the special ones: Gemma's tokenizers name <end_of_turn> an added token like any other.
        added = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
        found = [token for token in added if token.strip() and token in behind]
        if not found:
            return tokenizer.eos_token, tokenizer.eos_token
        first = min(found, key=behind.index)
        return behind[: behind.index(first) + len(first)], first


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as transformers' templates read it."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": part.kind} if isinstance(part, Slot) else {"type": "text", "text": part} for part in turn.parts
            ],
        }
        for turn in conversation.turns
    ]
