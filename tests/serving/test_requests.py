"""Good requests to a real server: its answers are the reward model's own, in every form that it takes."""

from __future__ import annotations

import pytest
from stand_ins.clips import make_clip
from stand_ins.request_bodies import asked, chatml, data_address, expected, picture, png, words
from stand_ins.served_model import Served

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.types import Media, PreferenceGroup, Response


def test_rewards_and_critiques_are_the_models_own(critic_served: Served) -> None:
    responses = ["a red circle", "no", "a red circle"]
    found = critic_served.ask(asked(picture(png()), words("what is there ?"), responses=responses))
    assert found.status_code == 200
    data = found.json()["data"]
    group = PreferenceGroup(
        "k", "what is there ?", tuple(map(Response, responses)), (Media("image", ("0",), (png(),)),)
    )
    verdicts = critic_served.judge.score_groups([group])[0]
    assert [item["reward"] for item in data] == pytest.approx([verdict.reward for verdict in verdicts], abs=1e-4)
    assert [item["critique"] for item in data] == [verdict.critique for verdict in verdicts]
    assert data[0]["critique"] and data[0]["reward"] == data[2]["reward"] != data[1]["reward"]
    assert [item["index"] for item in data] == [0, 1, 2] and data[0]["critique_cut"]


def test_a_clip_is_read(judge_served: Served) -> None:
    clip = make_clip(6)
    part = {"type": "video_url", "video_url": {"url": data_address(clip, "video/mp4")}}
    found = judge_served.ask(asked(part, words("what happens ?"), responses=["left", "right"]))
    media = Media("video", ("0.mp4",), (clip,))
    assert found.status_code == 200, found.text
    rewards = [item["reward"] for item in found.json()["data"]]
    assert rewards == pytest.approx(expected(judge_served, "what happens ?", ["left", "right"], media), abs=1e-4)


def test_a_text_stands_for_one_part(judge_served: Served) -> None:
    plain = {"messages": [{"role": "user", "content": "red ?"}], "responses": ["no"]}
    assert judge_served.ask(plain).json() == judge_served.ask(asked(words("red ?"), responses=["no"])).json()


CONVERSATIONS = {
    "a system turn": [("system", ["be brief"]), ("user", ["red ?"])],
    "a picture between words": [("user", ["this ", IMAGE, " what ?"])],
    "an earlier answer": [("user", [IMAGE, "red ?"]), ("assistant", ["yes"]), ("user", [IMAGE, "and ?"])],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_keeps_its_form(judge_served: Served, name: str) -> None:
    """Turns, and pictures in their places, each its own."""
    colours, media, messages = iter(("red", "blue")), [], []
    for role, parts in CONVERSATIONS[name]:
        content = []
        for part in parts:
            if part == IMAGE:
                media.append(Media("image", ("0",), (png(colour=next(colours)),)))
                content.append(picture(media[-1].data[0]))
            else:
                content.append(words(str(part)))
        messages.append({"role": role, "content": content})
    conversation = Conversation(tuple(Turn(role, tuple(parts)) for role, parts in CONVERSATIONS[name]))
    responses = tuple(map(Response, ("a circle", "no")))
    verdicts = judge_served.judge.score_groups([PreferenceGroup("k", conversation, responses, tuple(media))])[0]
    found = judge_served.ask({"messages": messages, "responses": ["a circle", "no"]})
    rewards = [item["reward"] for item in found.json()["data"]]
    assert rewards == pytest.approx([verdict.reward for verdict in verdicts], abs=1e-4)


def test_a_system_turn_of_a_trainer_counts(judge_served: Served) -> None:
    query = "<|im_start|>system\nbe brief<|im_end|>\n" + chatml("red ?", "no")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "red ?"}]
    (want,) = judge_served.ask({"messages": messages, "responses": ["no"]}).json()["data"]
    found = judge_served.ask({"query": [query]}, "/get_reward").json()["rewards"]
    assert found == pytest.approx([want["reward"]], abs=1e-4)
    assert found != pytest.approx(expected(judge_served, "red ?", ["no"]), abs=1e-4)


def test_openrlhf_is_answered_in_its_form(judge_served: Served) -> None:
    """As its client sends it: decoded prompt and response, the prompt beside it, labels that nobody needs."""
    queries = [chatml("red ?", "a red circle"), chatml("blue ?", "no") + "<|endoftext|>"]
    prompts = [query.partition("assistant\n")[0] + "assistant\n" for query in queries]
    want = [*expected(judge_served, "red ?", ["a red circle"]), *expected(judge_served, "blue ?", ["no"])]
    spaced = [*expected(judge_served, "red ?", ["\na red circle"]), *expected(judge_served, "blue ?", [" no"])]
    for body, rewards in (
        ({"query": queries, "prompts": prompts, "labels": ["x", None]}, want),
        ({"query": queries}, want),
        ({"query": ["red ?\na red circle", "blue ? no"], "prompts": ["red ?", "blue ?"]}, spaced),
    ):
        found = judge_served.ask(body, "/get_reward")
        assert found.status_code == 200, found.text
        answer = found.json()
        assert answer["rewards"] == pytest.approx(rewards, abs=1e-4)
        assert answer["scores"] == answer["rewards"] and answer["extra_logs"] == {}


def test_openrlhf_queries_may_come_with_pictures(judge_served: Served) -> None:
    query = chatml("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>what ?", "a red circle")
    found = judge_served.ask({"query": [query], "images": [[data_address(png())]]}, "/get_reward")
    want = expected(judge_served, "what ?", ["a red circle"], Media("image", ("0",), (png(),)))
    assert found.json()["rewards"] == pytest.approx(want, abs=1e-4)


def test_llama_factory_is_answered_in_its_form(judge_served: Served) -> None:
    found = judge_served.ask({"model": "model", "messages": [chatml("red ?", "a red circle")]}, "/v1/score/evaluation")
    answer = found.json()
    assert answer["scores"] == pytest.approx(expected(judge_served, "red ?", ["a red circle"]), abs=1e-4)
    assert (answer["object"], answer["model"]) == ("score.evaluation", "model") and answer["id"]
