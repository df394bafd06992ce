"""Requests that the reward server refuses, each with its status and the field that is named."""

from __future__ import annotations

import base64

import httpx
from stand_ins.request_bodies import asked, chatml, data_address, picture, png, words

HUGE = png(300, 200)
NOISE = base64.b64encode(bytes(range(256)) * 1000).decode()
BAD = {
    "no messages": ({"responses": ["a"]}, 422, "messages"),
    "no turn": ({"messages": [], "responses": ["a"]}, 422, "messages"),
    "no responses": (asked(words("?"), responses=[]), 422, "responses"),
    "a response that is no text": (asked(words("?"), responses=["a", 3]), 422, "responses[1]"),
    "half of a pair": ('{"messages":[{"role":"user","content":"?"}],"responses":["\\ud800"]}', 422, "responses[0]"),
    "a key that nothing reads": (asked(words("?"), temperature=1), 422, "temperature"),
    "another role": ({"messages": [{"role": "tool", "content": "?"}], "responses": ["a"]}, 422, "messages[0].role"),
    "another kind of part": (asked({"type": "audio"}), 422, "messages[0].content[0]"),
    "a part of the wrong form": (asked({"type": "text", "text": 1}), 422, "messages[0].content[0].text"),
    "an answer as the last turn": ({"messages": [{"role": role, "content": "?"} for role in ("user", "assistant")],
                                    "responses": ["a"]}, 422, "messages[1].role"),
    "too many responses": (asked(words("?"), responses=["a"] * 7), 413, "responses"),
    "too many pictures": (asked(*[picture(png())] * 3), 413, "messages"),
    "too many pixels": (asked(picture(HUGE)), 413, "messages[0].content[0].image_url.url"),
    "too large a picture": (asked(picture(png()), picture(f"data:image/png;base64,{NOISE[:160_000]}")),
                            413, "messages[0].content[1].image_url.url"),
    "no picture": (asked(picture(b"nothing")), 422, "messages[0].content[0].image_url.url"),
    "half a picture": (asked(picture(png()[:60]), words("?")), 422, "messages[0].content[0].image_url.url"),
    "a picture in PostScript": (asked(picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 422,
                                "messages[0].content[0].image_url.url"),
    "no base64": (asked(picture("data:image/png;base64,???")), 422, "messages[0].content[0].image_url.url"),
    "no base64 address": (asked(picture("data:image/png,abc")), 422, "messages[0].content[0].image_url.url"),
    "a clip as a picture": (asked(picture("data:video/mp4;base64,AAAA")), 422, "messages[0].content[0].image_url.url"),
    "no clip": (asked({"type": "video_url", "video_url": {"url": data_address(b"no", "video/mp4")}}), 422,
                "messages[0].content[0].video_url.url"),
    "a file": (asked(picture("file:///etc/passwd")), 403, "messages[0].content[0].image_url.url"),
    "a path": (asked(picture("/etc/passwd")), 403, "messages[0].content[0].image_url.url"),
    "a host that is not allowed": (asked(picture("http://example.com/a.png")), 403,
                                   "messages[0].content[0].image_url.url"),
    "too long a prompt": (asked(words("red " * 3000)), 422, "messages"),
    "too many tokens": (asked(words("red"), responses=[f"{n} " * 100 for n in range(6)]), 413, "responses"),
    "no JSON": ("{", 400, "body"),
    "a number": ("3", 422, "body"),
    "brackets without end": ("[" * 100_000, 400, None),
    "no UTF-8": (b'{"messages": "\xff"}', 400, None),
    "too large a body": ("[" + "1," * 200_000 + "1]", 413, "body"),
}  # fmt: skip
BAD_OF_TRAINERS = {
    "no marks": ("/get_reward", {"query": [chatml("?", "a"), "plain"]}, 422, "query[1]"),
    "fewer prompts": ("/get_reward", {"query": [chatml("?", "a")] * 2, "prompts": ["?"]}, 422, "prompts"),
    "a picture that was not sent": ("/get_reward", {"query": [chatml("<image>?", "a")]}, 422, "query[0]"),
    "a picture of another place": ("/get_reward", {"query": [chatml("<image>?", "a")], "images": [["http://a/b"]]},
                                   403, "images[0]"),
    "a picture for nobody": ("/get_reward", {"query": ["<|im_start|>system\nbe<|im_end|>\n<|im_start|>assistant\na"],
                                             "images": [[data_address(png())]]}, 422, "query[0]"),
    "too many queries": ("/get_reward", {"query": [chatml("?", "a")] * 6}, 413, "query"),
    "no answer": ("/v1/score/evaluation", {"messages": ["<|im_start|>user\n?<|im_end|>\n"]}, 422, "messages[0]"),
    "a length": ("/v1/score/evaluation", {"messages": [chatml("?", "a")], "max_length": 3}, 422, "max_length"),
    "too long a message": ("/v1/score/evaluation", {"messages": [chatml("red " * 3000, "a")]}, 422, "messages[0]"),
    "no message": ("/v1/score/evaluation", {"messages": []}, 422, "messages"),
}  # fmt: skip


def check_refused(found: httpx.Response, status: int, field: str | None) -> None:
    """Check status and form of a refusal, and the field that it names; None: any."""
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error["param"] == field or field is None
    assert error["message"].startswith(f"{field}: ") or field is None
    assert error["code"] and "\n" not in error["message"] and len(error["message"]) < 500
