"""Bodies of requests to the reward server, and the rewards that its model gives by itself."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image
from stand_ins.served_model import Served

from mmrlhf.types import Media, PreferenceGroup, Response


def png(width: int = 30, height: int = 20, colour: str = "red") -> bytes:
    """A picture of one colour as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_address(data: bytes, kind: str = "image/png") -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes | str) -> dict[str, Any]:
    """The part of a message that is a picture: a file, or its address."""
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else data_address(data)}}


def words(text: str) -> dict[str, Any]:
    """The part of a message that is a text."""
    return {"type": "text", "text": text}


def asked(*content: Any, responses: Any = ("a red circle", "no"), **more: Any) -> dict[str, Any]:
    """The body of a request with one turn of the user."""
    return {"messages": [{"role": "user", "content": list(content)}], "responses": list(responses), **more}


def chatml(prompt: str, response: str) -> str:
    """Prompt and response as a trainer sends them: in one text, with the marks of ChatML."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"


def expected(server: Served, prompt: str, responses: list[str], *media: Media) -> list[float]:
    """The rewards that the served model itself gives."""
    group = PreferenceGroup("k", prompt, tuple(map(Response, responses)), media)
    return [verdict.reward for verdict in server.judge.score_groups([group])[0]]
