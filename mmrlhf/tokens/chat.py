"""What a model's chat template and tokenizer put around texts: prompts, turn ends, begin-of-text, placeholders."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin

from mmrlhf.errors import DataError
from mmrlhf.types import PreferenceGroup

_SENTINEL = "reply"


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
        self._placeholders = sorted({t for o in owners for n in names if isinstance(t := getattr(o, n, None), str)})

    def prompt(self, text: str, *, num_images: int = 0, num_videos: int = 0) -> str:
        """One user turn with its media before the text, one placeholder each, and the opening of the answer."""
        return self._apply([self._user_turn(text, num_images, num_videos)], add_generation_prompt=True)

    def media_only(self, *, num_images: int, num_videos: int) -> str:
        """A user turn without text, to count what media cost."""
        turn = self._user_turn("", num_images, num_videos)
        return self._apply([{**turn, "content": turn["content"][:-1]}])

    def refuse_placeholders(self, group: PreferenceGroup, text: str) -> None:
        """Raise DataError where a text spells a placeholder: it would shift every medium behind it."""
        for token in self._placeholders:
            if token in text:
                raise DataError(
                    f"the text contains the model's own placeholder {token!r}",
                    where=f"key {group.key}, shard {group.shard or '(not packed)'}",
                    expected="media are attached to a record, never written into its text",
                    fix="remove the placeholder from the prompt or response and pack again",
                )

    def _user_turn(self, text: str, num_images: int, num_videos: int) -> dict[str, Any]:
        media = [{"type": "image"}] * num_images + [{"type": "video"}] * num_videos
        return {"role": "user", "content": [*media, {"type": "text", "text": text}]}

    def _apply(self, turns: list[dict[str, Any]], **arguments: Any) -> str:
        text = self._processor.apply_chat_template(turns, tokenize=False, **arguments)
        assert isinstance(text, str)
        return text

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
