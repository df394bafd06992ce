"""A record keeps its form: where media stand, who says what, and never another number of media than of places."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.errors import DataError
from mmrlhf.records.fields import media_fields
from mmrlhf.records.query_form import Question, read_question
from mmrlhf.records.ranked_record import parse_ranked


def asked(prompt: Any, *, media: bool = True, **fields: Any) -> Question:
    row = {"prompt": prompt, **fields}
    return read_question(row, media_fields(row, "f:1"), "f:1", media=media)


def refs(question: Question) -> list[object]:
    return [item.ref for item in question.media]


@given(
    st.text(alphabet="ab <>\n"),
    st.lists(st.sampled_from(["<image>", "<image>\n", " <image> "]), min_size=1, max_size=4),
)
def test_places_in_front_are_the_plain_form(prompt: str, tokens: list[str]) -> None:
    """LLaVA's `<image>\\n` is the template's business: what it says is media, then the text."""
    paths = [f"{number}.png" for number in range(len(tokens))]
    question = asked("".join(tokens) + prompt, images=paths)
    assert question.conversation == asked(prompt.lstrip(), images=paths).conversation
    assert question.conversation.plain == prompt.lstrip() and refs(question) == paths and not question.notes


def test_media_stand_where_the_text_says() -> None:
    question = asked("Picture 1: <image>\nthen <video>, <image>", images=["a", "b"], video="v")
    parts = ("Picture 1: ", IMAGE, "\nthen ", VIDEO, ", ", IMAGE)
    assert question.conversation == Conversation((Turn("user", parts),))
    assert refs(question) == ["a", "v", "b"] and question.conversation.form == "user:titvti"


def test_a_picture_between_words_and_a_plain_one_are_told_apart() -> None:
    assert asked("what <image>", image="a").conversation.plain is None
    assert asked("what", image="a").conversation.plain == "what"
    assert asked("what", image="a").conversation == asked("<image>what", image="a").conversation


def test_turns_keep_their_order_and_media_without_places_stand_in_the_first_question() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"from": "human", "value": "what ?"},
        {"from": "gpt", "value": "a cat"},
        {"role": "user", "content": "sure ?"},
    ]
    turns = asked(messages, image="a").conversation.turns
    assert [(turn.role, turn.parts) for turn in turns] == [
        ("system", ("be kind",)),
        ("user", (IMAGE, "what ?")),
        ("assistant", ("a cat",)),
        ("user", ("sure ?",)),
    ]


PARTS = [
    {"type": "image", "image": "x"},
    {"type": "image", "url": "x"},
    {"type": "image", "path": "x"},
    {"type": "image_url", "image_url": {"url": "x"}},
    {"type": "image_url", "image_url": "x"},
    {"type": "input_image", "image_url": "x"},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_part_may_hold_its_picture_or_stand_for_the_fields(part: dict[str, Any]) -> None:
    words = {"type": "text", "text": "then"}
    question = asked(
        [{"role": "user", "content": [words, part, {"type": "image"}, {"type": "video"}]}], image="a", video="v"
    )
    assert refs(question) == ["x", "a", "v"] and question.conversation.form == "user:tiiv"
    alone = asked([{"role": "user", "content": [part, words]}])
    assert refs(alone) == ["x"] and alone.conversation.plain == "then"


def test_media_that_messages_and_a_column_both_name_are_named_twice() -> None:
    prompt = [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "?"}]}]
    assert refs(asked(prompt, images=["x"])) == ["x"]
    with pytest.raises(DataError, match="different numbers of media"):
        asked(prompt, images=["y"])


@pytest.mark.parametrize(
    ("prompt", "fields", "numbers"),
    [
        ("<image>\nwhat ?", {}, "1 image, 0 videos; in the media fields 0 images"),
        ("<image>\nwhat ?", {"images": []}, "1 image, 0 videos; in the media fields 0 images"),
        ("<image>\n<image>\nwhat ?", {"image": "a"}, "2 images, 0 videos; in the media fields 1 image"),
        ("<image>what ?", {"images": ["a", "b"]}, "1 image, 0 videos; in the media fields 2 images"),
        ("look <image>", {"images": ["a", "b"]}, "1 image, 0 videos; in the media fields 2 images"),
        ("<video>\nwhat ?", {"image": "a"}, "0 images, 1 video; in the media fields 1 image, 0 videos"),
        ("<image>what ?", {"image": "a", "video": "v"}, "1 image, 0 videos; in the media fields 1 image, 1 video"),
    ],
)
def test_another_number_of_media_than_of_places_is_refused_with_both(
    prompt: str, fields: dict[str, Any], numbers: str
) -> None:
    with pytest.raises(DataError, match=rf"f:1:prompt(?s:.)*{numbers}"):
        asked(prompt, **fields)
    words = asked(prompt, media=False, **fields)
    assert "<" not in str(words.conversation.plain) and words.notes["placeholders stripped"] == prompt.count("<")


def test_llavas_image_stands_for_a_video_too() -> None:
    question = asked("<image>\nwhat ?", video="v")
    assert question.conversation == Conversation.about("what ?", [VIDEO]) and refs(question) == ["v"]


def test_a_placeholder_in_an_answer_is_text_and_counted() -> None:
    messages = [
        {"role": "user", "content": "<image>what ?"},
        {"role": "assistant", "content": "<image> a cat"},
        {"role": "user", "content": "sure ?"},
    ]
    row = {"prompt": messages, "image": "a", "responses": [{"text": "<video> yes <image>"}, {"text": "no"}]}
    record = parse_ranked(row, "f:1")
    assert record.prompt.turns[1].parts == ("<image> a cat",) and len(record.media) == 1
    assert record.notes == {"placeholders in answers, read as text": 3}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "end with a question"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "end with a question"),
        ([{"role": "tool", "content": "x"}], r"f:1:prompt\[0\]:role"),
        ([{"role": "user", "content": 3}], r"f:1:prompt\[0\]:content"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "text, image"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "embedded bytes"),
        (7, "f:1:prompt"),
    ],
)
def test_what_is_no_conversation_is_refused_at_its_place(prompt: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        asked(prompt)


def test_responses_may_have_media_of_their_own() -> None:
    answers = [{"text": "same", "image": "a"}, {"text": "same", "image": "b"}]
    record = parse_ranked({"prompt": "what <image> ?", "responses": answers}, "f:1")
    assert record.prompt.form == "user:tit" and not record.media
    assert [[item.ref for item in own] for own in record.own_media] == [["a"], ["b"]]
    beside = parse_ranked({"prompt": "what ?", "image": "g", "responses": [{"text": "x"}, answers[1]]}, "f:1")
    assert beside.prompt.plain == "what ?" and [item.ref for item in beside.media] == ["g"]
    assert [[item.ref for item in own] for own in beside.own_media] == [[], ["b"]]


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({}, [{"image": "a"}, {}]),
        ({}, [{"image": "a"}, {"video": "v"}]),
        ({"image": "g"}, [{"images": ["a", "b"]}, {}]),
    ],
    ids=str,
)
def test_responses_with_other_media_than_places_are_refused(fields: dict[str, Any], answers: list[Any]) -> None:
    responses = [{"text": str(number), **answer} for number, answer in enumerate(answers)]
    with pytest.raises(DataError, match=r"f:1:responses\[\d\](?s:.)*expected: 1 \(image\)"):
        parse_ranked({"prompt": "what ?", **fields, "responses": responses}, "f:1")


def test_without_media_a_query_is_still_told_apart_by_those_that_its_messages_name() -> None:
    def about(path: str, **fields: Any) -> Question:
        parts = [{"type": "image", "image": path}, {"type": "text", "text": "what?"}]
        return asked([{"role": "user", "content": parts}], media=False, **fields)

    assert about("a.png").conversation == about("b.png").conversation
    assert (refs(about("a.png")), refs(about("b.png"))) == (["a.png"], ["b.png"])
    assert refs(about("a.png", images=["a.png"])) == ["a.png"], "named twice"
