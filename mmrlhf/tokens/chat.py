"""What a model's chat template and tokenizer put around texts: prompts, turn ends, begin-of-text, placeholders."""

from __future__ import annotations

import re
from typing import Any

from transformers import ProcessorMixin

from mmrlhf.errors import ModelError
from mmrlhf.processes import work_limit

# a real template takes milliseconds
_TEMPLATE_SECONDS = 10.0
_SENTINEL = "reply"
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
        begin = tokenizer.bos_token
        self.add_special_tokens = not (begin and self.prompt("ask").startswith(begin))
        owners = (processor, tokenizer)
        names = ("image_token", "video_token")
        placeholders = {t for o in owners for n in names if isinstance(t := getattr(o, n, None), str)}
        spelled = self._spelled(tokenizer, placeholders | {end_token})
        self._spellings = re.compile("|".join(map(re.escape, spelled)))
        self._marked = re.compile("|".join(re.escape(token[0] + MARK + token[1:]) for token in spelled))

    def prompt(self, text: str, *, num_images: int = 0, num_videos: int = 0) -> str:
        """One user turn with its media before the text, one placeholder each, and the opening of the answer."""
        return self._apply([self._user_turn(text, num_images, num_videos)], add_generation_prompt=True)

    def media_only(self, *, num_images: int, num_videos: int) -> str:
        """A user turn without text, to count what media cost."""
        turn = self._user_turn("", num_images, num_videos)
        return self._apply([{**turn, "content": turn["content"][:-1]}])

    def mark(self, text: str) -> str:
        """Put `MARK` behind the first character of whatever in a text of the user's spells a token of the template's.

        Cut there, the spelling is tokenized as two pieces of ordinary text, so it can end no turn and be no medium.
        """
        return self._spellings.sub(lambda found: found[0][0] + MARK + found[0][1:], text.replace(MARK, ""))

    def without_spellings(self, marked: str) -> str:
        """A text that `mark` marked, without what it marked."""
        return self._marked.sub("", marked)

    def _user_turn(self, text: str, num_images: int, num_videos: int) -> dict[str, Any]:
        media = [{"type": "image"}] * num_images + [{"type": "video"}] * num_videos
        return {"role": "user", "content": [*media, {"type": "text", "text": text}]}

    def _apply(self, turns: list[dict[str, Any]], **arguments: Any) -> str:
        try:
            with work_limit(_TEMPLATE_SECONDS):
                text = self._processor.apply_chat_template(turns, tokenize=False, **arguments)
        except TimeoutError as error:
            raise ModelError(
                "this checkpoint's chat template does not come to an end",
                where=getattr(self._processor.tokenizer, "name_or_path", None) or "chat_template",
                given=f"one conversation {error}",
                expected="a template that writes a conversation in a moment",
                fix="do not trust this checkpoint; its chat_template.jinja (or tokenizer_config.json) holds the loop",
            ) from error
        assert isinstance(text, str)
        return text

    def _spelled(self, tokenizer: Any, others: set[str]) -> list[str]:
        """Texts that the tokenizer or processor reads as a token of the template's, the longest first.

        Added tokens that are no special ones and that the template does not write are ordinary words (Gemma's HTML).
        """
        written = self.prompt("ask", num_images=1)
        added = tokenizer.added_tokens_decoder.values()
        found = {
            token.content for token in added if token.special or (token.content.strip() and token.content in written)
        }
        found |= {*tokenizer.all_special_tokens, *others}
        return sorted((token for token in found if len(token.strip()) > 1), key=lambda token: (-len(token), token))

    def _find_turn_end(self, tokenizer: Any) -> tuple[str, str]:
        """What the template puts behind an assistant's text, up to the first added token; and that token."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": _SENTINEL}]}
        text = self._apply([self._user_turn("ask", 0, 0), reply])
        behind = text[text.rindex(_SENTINEL) + len(_SENTINEL) :]
        # Not only the special ones: Gemma's tokenizers name <end_of_turn> an added token like any other.
        added = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
        found = [token for token in added if token.strip() and token in behind]
        if not found:
            return tokenizer.eos_token, tokenizer.eos_token
        first = min(found, key=behind.index)
        return behind[: behind.index(first) + len(first)], first
