"""A judge on this machine: it is asked as an endpoint is, and its answers are its policy's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.policy import Policy
from mmrlhf.judging.judge_model import Judge
from mmrlhf.judging.local_judge import LocalJudge
from mmrlhf.media.images import decode_image
from mmrlhf.stages import rewardbench
from mmrlhf.tokens.picture_urls import urls_of
from mmrlhf.tokens.processing import MediaSettings


def test_its_words_are_the_policys(small_policy, small_groups, tmp_path):
    group = next(group for group in small_groups if group.media and group.media[0].kind == "image")
    picture = decode_image(group.media[0].data[0], where="test")
    (url,) = urls_of(group, group.media[0], MediaSettings(), 1024)
    shown = {"type": "image_url", "image_url": {"url": url}}
    requests = {
        "words": [{"role": "user", "content": "Which is better?"}],
        "picture": [{"role": "user", "content": [shown, {"type": "text", "text": "Which is better?"}]}],
        "too long": [{"role": "user", "content": "word " * 20000}],
    }
    judge = Judge(LocalJudge(str(small_policy), max_tokens=6), tmp_path / "verdicts")
    said = judge.ask(requests)
    policy = Policy.from_pretrained(small_policy, device="cpu")
    for name, media in (("words", None), ("picture", picture)):
        assert said[name].text == policy.answer(media, "Which is better?", max_new_tokens=6).strip()
    assert said["too long"].problem and not said["too long"].failed
    assert judge.asker is judge.asker, "the model is loaded once"
    use = judge.use()
    assert use.asked == 3 and use.cost is None
    again = Judge(LocalJudge(str(small_policy), max_tokens=6), tmp_path / "verdicts")
    kept = again.ask(requests)
    assert again.use().cached == sum(not answer.problem for answer in said.values())
    assert {name: answer.text for name, answer in kept.items()} == {name: answer.text for name, answer in said.items()}


def test_a_judge_without_a_model_is_said(tmp_path):
    with pytest.raises(ConfigError, match="judge=local"):
        Judge(LocalJudge(), tmp_path).ask({"q": [{"role": "user", "content": "?"}]})


def test_a_model_that_says_no_verdict_is_told_in_its_words(small_policy, small_shards, tmp_path, runtime):
    with pytest.raises(DataError, match="no verdicts that can be read"):
        rewardbench.run(
            tmp_path / "out", shards=small_shards, judge=LocalJudge(str(small_policy), max_tokens=4), limit=2,
            runtime=replace(runtime, verdicts=tmp_path / "verdicts"),
        )  # fmt: skip
