"""A conversation on the page: turns as turns, every picture at its place, those of one response beside it."""

from __future__ import annotations

import re
from dataclasses import replace

from stand_ins.sample_groups import make_group, picture

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.reporting.page_style import environment
from mmrlhf.reporting.sample_cards import build_sample, sample_card
from mmrlhf.reporting.turn_cards import turn_cards
from mmrlhf.types import Media

TALK = Conversation(
    (
        Turn("system", ("be <b>",)),
        Turn("user", ("look at", VIDEO, "and", IMAGE)),
        Turn("assistant", ("seen",)),
        Turn("user", (IMAGE, "?")),
    )
)


def shown(group) -> str:
    sample = sample_card(build_sample(group, rewards=None, objective=None, before=(), after=()))
    page = environment().from_string("{% import 'samples.html.j2' as s %}{{ s.sample_card(card) }}").render(card=sample)
    return re.sub(r"data:image/\w+;base64,[^\"]{20,}", lambda found: found[0][-40:-8], page)


def test_turns_are_numbered_by_what_is_shown_of_each_medium() -> None:
    assert turn_cards(TALK, (4, 1, 1)) == [
        {"role": "system", "parts": [{"text": "be <b>"}]},
        {
            "role": "user",
            "parts": [{"text": "look at"}, {"pictures": [0, 1, 2, 3]}, {"text": "and"}, {"pictures": [4]}],
        },
        {"role": "assistant", "parts": [{"text": "seen"}]},
        {"role": "user", "parts": [{"pictures": [5]}, {"text": "?"}]},
    ]
    assert turn_cards(Conversation.about("?", [IMAGE]), (1,)) == []


def test_a_card_has_the_pictures_of_a_conversation_in_its_turns() -> None:
    clip = Media("frames", tuple(f"f00{n}.jpg" for n in range(4)), tuple(picture(shade=60 + 20 * n) for n in range(4)))
    stills = make_group("k", num_images=2).media
    page = shown(replace(make_group("k"), prompt=TALK, media=(clip, *stills)))
    turns = re.findall(r'<p class="prompt turn">(.*?)</p>', page, re.S)
    assert [turn.count("<img") for turn in turns] == [0, 5, 0, 1] and page.count("<img") == 6
    assert "be &lt;b&gt;" in turns[0] and turns[1].index("look at") < turns[1].index("<img") < turns[1].index("and")


def test_a_picture_of_one_response_stands_beside_it() -> None:
    group = make_group("k")
    own = Media("image", ("r0.jpg",), (picture(9, 9),))
    page = shown(replace(group, responses=(group.responses[0], replace(group.responses[1], media=(own,)))))
    first, second = re.findall(r'<span class="text">(.*?)</span>', page, re.S)
    assert "<img" not in first and second.count("<img") == 1 and page.count("<img") == 2
