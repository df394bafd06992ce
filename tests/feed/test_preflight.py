"""What is found before the start is what encoding then raises and cuts, from sizes and texts alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from stand_ins.small_data import draw_group, picture
from stand_ins.tiny_models import AVAILABLE, formed_groups

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.preflight import look_ahead
from mmrlhf.models.families import positions_for
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.types import Media, PreferenceGroup, Response


def _image(width: int, height: int) -> Media:
    return Media("image", ("0.png",), (picture(np.random.default_rng(0), width, height),))


def _frames(number: int) -> Media:
    rng = np.random.default_rng(1)
    return Media(
        "frames", tuple(f"f{i:03}.png" for i in range(number)), tuple(picture(rng, 60, 50) for _ in range(number))
    )


def drawn() -> list[PreferenceGroup]:
    """Short and long prompts and responses, with pictures of many shapes, with several, with a clip, with none."""
    groups = [draw_group(number) for number in range(8)]
    words = "red circle above blue "
    groups[0] = replace(groups[0], prompt=words * 60)
    groups[1] = replace(groups[1], responses=(Response(words * 60, 1, {"full": "no"}), *groups[1].responses[1:]))
    groups[2] = replace(groups[2], prompt="what ?", media=(_image(900, 3),))
    groups[3] = replace(groups[3], prompt="what ?", media=(_image(300, 211),))
    groups[4] = replace(groups[4], prompt="what ?", media=(_image(50, 70), replace(_image(90, 33), names=("1.png",))))
    groups[5] = replace(groups[5], prompt="what ?", media=(_frames(5),))
    groups[6] = replace(groups[6], prompt="你好 <image> <|im_end|> " * 20)
    clips = replace(_frames(3), names=tuple(f"v2.f{i:03}.png" for i in range(3)))
    asked = Conversation((Turn("user", ("what", VIDEO, "and", IMAGE, VIDEO)),))
    groups.append(replace(groups[7], key="query-8", prompt=asked, media=(_frames(5), _image(50, 40), clips)))
    rude = Conversation((Turn("user", ("who ?",)), Turn("user", (words * 3,))))
    drawn = Conversation((Turn("user", ("draw",)), Turn("assistant", (IMAGE, "here")), Turn("user", ("again",))))
    groups.append(replace(groups[7], key="query-9", prompt=rude, media=()))
    groups += [replace(groups[7], key=f"query-{n}", prompt=drawn, media=(_image(50, 40 + n),)) for n in (10, 11)]
    return [*groups, *formed_groups()]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("many-shapes")
    write_shards(drawn(), folder, max_groups_per_shard=5)
    return Index.load(folder)


@pytest.fixture(scope="module", params=AVAILABLE)
def make(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]):
    backbone, processor = load_backbone(tiny_folders[request.param], ModelSettings())
    positions, media = positions_for(backbone), MediaSettings(num_frames=4)
    visual = Encoder(processor, template=AnswerTemplate(), positions=positions, media=media).visual

    def make(template: Template, **options) -> Encoder:
        encoder = Encoder(processor, template=template, positions=positions, media=media, **options)
        encoder.visual = visual  # what media cost depends on none of the options: each size is asked about once
        return encoder

    return make


@pytest.fixture(scope="module")
def longest(make, index: Index) -> Callable[[str], int]:
    """Tokens of a family's longest row under a template; some processors or templates refuse a few queries."""
    unread = ("query-2", "query-9", "query-10", "query-11")

    @cache
    def longest(template: str) -> int:
        encoder = make({"answer": AnswerTemplate(), "critique": CritiqueTemplate(instruction="")}[template])
        return max(encoder(group).num_tokens for group in index if group.key not in unread)

    return longest


@pytest.mark.parametrize("with_answer", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["whole", "context"])
@pytest.mark.parametrize(
    "template",
    [AnswerTemplate(), pytest.param(CritiqueTemplate(instruction=""), marks=pytest.mark.slow)],
    ids=["answer", "critique"],
)
@pytest.mark.parametrize("too_long", ["shorten", "refuse"])
def test_it_foresees_what_encoding_does(
    make, longest: Callable[[str], int], index: Index, template: Template, too_long: str, with_answer: bool
) -> None:
    """Every family, at several limits: the same queries left out for the same reason, the same tokens cut."""
    for max_tokens in (60, 150, longest(template.name)):
        encoder = make(template, max_tokens=max_tokens, too_long=too_long, room=0 if with_answer else 7)
        refused, cut = {}, {}
        for group in index:
            try:
                encoded = encoder(group) if with_answer else encoder.context(group)
            except DataError as error:
                refused[group.key] = error.problem
            else:
                lost = sum(branch.truncated for branch in encoded.branches)
                cut |= {group.key: lost} if lost else {}
        found = look_ahead(index, range(len(index)), encoder, with_answer=with_answer)
        clip = {"query-5", "query-8"}  # near the limit, a clip's time marks are known only when it is read
        assert {k: why.reason for k, why in found.left_out.items() if k not in clip} == {
            k: problem for k, problem in refused.items() if k not in clip
        }
        assert {k: n for k, n in found.cut.items() if k not in clip} == {k: n for k, n in cut.items() if k not in clip}
        assert clip & set(found.left_out) <= set(refused), "nothing is left out that would have fitted"


def test_no_medium_is_read(index: Index, make, monkeypatch) -> None:
    monkeypatch.setattr("mmrlhf.tokens.encode.decode_media", lambda *_: pytest.fail("a medium was decoded"))
    assert look_ahead(index, range(len(index)), make(AnswerTemplate(), max_tokens=80)).queries == len(index)


def test_of_many_rows_those_near_the_limit_are_tokenized(index: Index, make, monkeypatch) -> None:
    """The estimate decides which rows are looked at; what is far too long is found as before."""
    monkeypatch.setattr("mmrlhf.feed.preflight.MANY", 2)
    encoder = make(AnswerTemplate(), max_tokens=200)
    encoder.calibrate([(index.entries[row], index.read(row)) for row in range(len(index))])
    assert "query-0" in look_ahead(index, range(len(index)), encoder).too_long


def test_it_is_settled_as_wanted(index: Index, make, caplog) -> None:
    """`quarantine` leaves out within the budget, `error` is one screen with counts and keys; cuts are told in both."""
    encoder = make(AnswerTemplate(), max_tokens=200)
    found = look_ahead(index, [0, 1, 7], encoder)
    assert found.too_long == ["query-0"] and found.refused == [] and list(found.cut) == ["query-1"]
    quarantine = Quarantine(3)
    with caplog.at_level(logging.WARNING):
        found.settle(quarantine, "quarantine")
    assert list(quarantine.own()) == ["query-0"] and "1 of 3 queries will be cut: query-1" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 queries will not fit: query-0(?s:.)*1 of 3 queries will be cut"):
        found.settle(Quarantine(3), "error")
    with pytest.raises(ConfigError, match="quarantine, error"):
        found.settle(Quarantine(3), "sometimes")
    tight = look_ahead(index, range(len(index)), make(AnswerTemplate(), max_tokens=30))
    with pytest.raises(DataError, match="too many queries cannot be used"):
        tight.settle(Quarantine(len(index)), "quarantine")
