"""A query as a request: the turns in their order, and pictures that show what our own models are shown."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from stand_ins.clips import make_clip
from stand_ins.small_data import draw_group

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.media.images import decode_image, is_upright_jpeg
from mmrlhf.responders.chat_request import check_options, messages_of, query_record
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.types import Media, PreferenceGroup

MEDIA = MediaSettings(num_frames=3)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8), mode)


def group_of(*data: bytes, prompt: Conversation | None = None) -> PreferenceGroup:
    media = tuple(Media("image", (f"{number}.img",), (each,)) for number, each in enumerate(data))
    return PreferenceGroup("k", prompt or "what is it ?", (), media)  # type: ignore[arg-type]


def shown(url: str) -> tuple[str, bytes, np.ndarray]:
    head, _, body = url.partition(",")
    data = base64.b64decode(body)
    return head, data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def urls(messages: list[dict]) -> list[str]:
    return [part["image_url"]["url"] for turn in messages if isinstance(turn["content"], list)
            for part in turn["content"] if part["type"] == "image_url"]  # fmt: skip


def test_the_turns_stay_in_their_order() -> None:
    turns = (
        Turn("system", ("answer ", "in short .")),
        Turn("user", ("the first is ", IMAGE, " , and ", IMAGE, "")),
        Turn("assistant", ("I see .",)),
        Turn("user", ("what differs ?",)),
    )
    found = messages_of(
        group_of(encoded(picture(), "PNG"), encoded(picture(8, 8), "PNG"), prompt=Conversation(turns)), MEDIA, None
    )
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"] == "answer in short ." and found[3]["content"] == "what differs ?"
    assert [part["type"] for part in found[1]["content"]] == ["text", "image_url", "text", "image_url"]
    assert found[1]["content"][2]["text"] == " , and " and [shown(url)[2].shape[:2] for url in urls(found)] == [
        (40, 60),
        (8, 8),
    ]


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
FORMS = {
    "PNG": encoded(picture(), "PNG"), "transparent": encoded(picture(mode="RGBA"), "PNG"),
    "turned": encoded(picture(), "JPEG", exif=ROTATED), "grey": encoded(picture(mode="L"), "PNG"),
    "WEBP": encoded(picture(), "WEBP", lossless=True), "CMYK": encoded(picture(mode="CMYK"), "JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_is_sent_is_what_our_own_models_see(form: str) -> None:
    """Upright, on white, without loss; only a JPEG that any program shows alike is sent as it is."""
    (url,) = urls(messages_of(group_of(FORMS[form]), MEDIA, None))
    head, _, pixels = shown(url)
    assert head == "data:image/png;base64" and not is_upright_jpeg(FORMS[form])
    assert (pixels == np.asarray(decode_image(FORMS[form], where="here"))).all()


def test_an_upright_jpeg_is_sent_as_it_is() -> None:
    data = encoded(picture(), "JPEG")
    (url,) = urls(messages_of(group_of(data), MEDIA, 60))
    assert shown(url)[:2] == ("data:image/jpeg;base64", data)


def test_a_large_picture_is_made_smaller_and_that_is_another_request() -> None:
    group = group_of(encoded(picture(800, 400), "JPEG"))
    (url,) = urls(messages_of(group, MEDIA, 100))
    head, data, pixels = shown(url)
    assert head == "data:image/jpeg;base64" and pixels.shape == (50, 100, 3) and len(data) < len(group.media[0].data[0])
    assert query_record(group, MEDIA, 100) != query_record(group, MEDIA, None) == query_record(group, MEDIA, None)


def test_a_video_is_frames_of_our_own_sampler() -> None:
    clip = Media("video", ("mp4",), (make_clip(9),))
    prompt = Conversation((Turn("user", ("look at ", VIDEO, " : what moves ?")),))
    group = PreferenceGroup("k", prompt, (), (clip,))
    found = messages_of(group, MEDIA, None)
    wanted = decode_media(group, MEDIA).clips[0].frames
    assert [part["type"] for part in found[0]["content"]] == ["text", *["image_url"] * 3, "text"]
    assert all((shown(url)[2] == frame).all() for url, frame in zip(urls(found), wanted, strict=True))
    other = MediaSettings(num_frames=2)
    assert query_record(group, other, None) != query_record(group, MEDIA, None)


def test_a_damaged_picture_and_a_query_without_one_are_refused_by_key() -> None:
    with pytest.raises(DataError, match="key k, member 0.img"):
        messages_of(group_of(FORMS["PNG"][:60]), MEDIA, None)
    with pytest.raises(DataError, match="places for other media"):
        messages_of(replace(group_of(FORMS["PNG"]), media=()), MEDIA, None)


def test_a_text_alone_is_one_text() -> None:
    group = draw_group(0)
    assert not group.media and messages_of(group, MEDIA, None) == [{"role": "user", "content": group.prompt.question}]


@pytest.mark.parametrize(
    "options", [{"top_p": float("nan")}, {"stop": ["\ud800"]}, {"x": {"y": float("inf")}}, {"z": {1}}]
)
def test_options_that_no_request_can_hold_are_refused(options: dict) -> None:
    """Before anybody is asked: a batch's file would be no JSON, and an endpoint's request could not be made."""
    with pytest.raises(ConfigError, match="cannot be sent"):
        check_options(options)
    check_options({"top_p": 0.5, "seed": None, "stop": ["é"], "x": {"y": [True]}})
