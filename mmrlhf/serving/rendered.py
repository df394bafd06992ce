"""A conversation that a trainer sends as one text, with the marks of its policy's chat template, read back into turns.

Trainers decode prompt and response together (OpenRLHF, LLaMA-Factory), so where the response begins is known from the
marks, or from the prompt where that is sent as well. Known are the marks of the common chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mmrlhf.serving.refusals import Refusal
from mmrlhf.serving.wire import Address, ImagePart, Message, TextPart

_PICTURE = r"<\|image_pad\|>|<\|video_pad\|>|<image>|<video>|<image_soft_token>|<IMG_CONTEXT>|<\|image\|>|\[IMG\]"
# one placeholder, or one for each of a picture's tokens, with what families put behind it
_PICTURES = re.compile(rf"(?P<sign>{_PICTURE})(?P=sign)*(?:<\|vision_end\|>|<end_of_image>|</img>)*\n?")
# and before it
_OPENINGS = re.compile(r"(?:<\|vision_start\|>|<start_of_image>|<img>|\s)+")
_REPEATED = re.compile(rf"({_PICTURE})\1+")
_ROLES = {"model": "assistant", "[inst]": "user", "[/inst]": "assistant"}
# what begins texts, ends turns and fills up rows
_SPECIAL = re.compile(
    r"<\|begin_of_text\|>|<bos>|<s>|<\|im_start\|>|<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<\|end\|>|"
    r"<end_of_turn>|<end_of_utterance>|<eos>|</s>|<pad>|<\|pad\|>|\[PAD\]"
)
_ENDS = re.compile(rf"(?:{_SPECIAL.pattern}|\s)+")


@dataclass(frozen=True)
class RenderedTurn:
    """One turn of a rendered conversation, as it was written."""

    role: str
    text: str


@dataclass(frozen=True)
class Marks:
    """How a chat template opens turns (a regular expression with a group `role`), and what ends them."""

    opening: str
    end: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.opening)

    def read(self, text: str) -> list[RenderedTurn]:
        """The turns of a text; none where it has none of these marks. What stands before the first is a system turn."""
        found = list(self._pattern.finditer(text))
        if not found:
            return []
        before = _SPECIAL.sub("", text[: found[0].start()]).strip()
        turns = [RenderedTurn("system", before)] if before else []
        for mark, following in zip(found, [*found[1:], None], strict=True):
            said = text[mark.end() : following.start() if following else len(text)]
            role = _ROLES.get(mark["role"].lower(), mark["role"].lower())
            # the last answer is the response, which is taken as it is
            is_response = following is None and role == "assistant"
            turns.append(RenderedTurn(role, said if is_response else said.partition(self.end)[0]))
        return turns


KNOWN = (
    Marks(r"<\|im_start\|>(?P<role>system|user|assistant)(?: *\n| )", "<|im_end|>"),
    Marks(r"<\|start_header_id\|>(?P<role>system|user|assistant)<\|end_header_id\|>\n\n", "<|eot_id|>"),
    Marks(r"<start_of_turn>(?P<role>user|model)\n", "<end_of_turn>"),
    Marks(r"<\|(?P<role>system|user|assistant)\|>\n", "<|end|>"),
    Marks(r"(?P<role>\[INST\]|\[/INST\]) ?", "</s>"),
    Marks(
        r"(?:^|(?<=<\|im_start\|>)|(?<=<end_of_utterance>\n))(?P<role>User|Assistant|System): ?", "<end_of_utterance>"
    ),
    Marks(r"(?:^|(?<=[\s>]))(?P<role>USER|ASSISTANT): ?", "</s>"),
)


def read_turns(text: str) -> list[RenderedTurn]:
    """The turns of a rendered conversation, by the first template whose marks it has; none without marks."""
    return next((turns for marks in KNOWN if (turns := marks.read(text))), [])


def split_rendered(text: str, prompt: str | None, field: str) -> tuple[list[RenderedTurn], str]:
    """The turns before the response, and the response, of prompt and response in one text.

    Args:
        prompt: what the text begins with, where that was sent; it is plain text where it has no marks.
        field: of the request.

    Raises:
        Refusal: nothing says where the response begins.
    """
    text = _REPEATED.sub(r"\1", text)
    asked = None if prompt is None else _REPEATED.sub(r"\1", prompt)
    start = -1 if asked is None else text.find(asked)
    if asked is not None and start >= 0 and not _SPECIAL.sub("", text[:start]).strip():
        turns = read_turns(asked)
        if turns and turns[-1].role == "assistant" and not turns[-1].text.strip():
            turns = turns[:-1]
        return turns or [RenderedTurn("user", asked)], _without_ends(text[start + len(asked) :])
    turns = read_turns(text)
    if len(turns) < 2 or turns[-1].role != "assistant":
        problem = (
            "nothing says where the response begins: expected the marks of a known chat template with the response as "
            "the last turn, or the prompt beside it"
        )
        raise Refusal(422, "not_a_conversation", problem, field=field)
    return turns[:-1], _without_ends(turns[-1].text)


def as_messages(turns: Sequence[RenderedTurn], images: Sequence[str] | None, field: str) -> list[Message]:
    """The messages that turns stand for, with the pictures in the places of their placeholders.

    Args:
        images: addresses of pictures; None: none were sent.

    Raises:
        Refusal: more or fewer placeholders than pictures.
    """
    left = list(images or ())
    standing = sum(len(_PICTURES.findall(turn.text)) for turn in turns)
    if standing not in (0, len(left)):
        raise Refusal(422, "pictures_missing", f"{standing} pictures stand in the prompt and {len(left)} were sent; "
                      "pictures can be sent to /v1/rewards (examples/), or here as images", field=field)  # fmt: skip
    messages = [Message(role=turn.role, content=_parts(turn.text, left)) for turn in turns]  # type: ignore[arg-type]
    if left:  # no placeholder stands for them: they come first
        first = next((message for message in messages if message.role == "user"), messages[0])
        first.content[:0] = [_picture(address) for address in left]
    return messages


def _parts(text: str, pictures: list[str]) -> list[TextPart | ImagePart]:
    """Text and pictures of one turn; pictures are taken from the front of the list."""
    parts: list[TextPart | ImagePart] = []
    end = 0
    for mark in _PICTURES.finditer(text):
        before = text[end : mark.start()]
        parts += [_text(before[: _start_of_last(_OPENINGS, before)]), _picture(pictures.pop(0))]
        end = mark.end()
    parts.append(_text(text[end:]))
    return [part for part in parts if not isinstance(part, TextPart) or part.text] or [_text("")]


def _text(text: str) -> TextPart:
    return TextPart(type="text", text=text.strip())


def _picture(address: str) -> ImagePart:
    return ImagePart(type="image_url", image_url=Address(url=address, detail="auto"))


def _without_ends(response: str) -> str:
    """A response without the special tokens behind it."""
    start = _start_of_last(_ENDS, response)
    return response[:start] if _SPECIAL.search(response, start) else response


def _start_of_last(run: re.Pattern[str], text: str) -> int:
    """Where the run that ends a text begins; its length where none does.

    Runs are found from the front: a pattern that is anchored at the end begins anew at each sign of every run, and
    takes minutes for a few thousand spaces.
    """
    last = len(text)
    for found in run.finditer(text):
        last = found.start() if found.end() == len(text) else last
    return last
