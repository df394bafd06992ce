"""Published pairs about several pictures, or about pictures of their own."""

from __future__ import annotations

import json
from pathlib import Path

from stand_ins.published_rows import ROWS, groups, human, write
from stand_ins.sample_groups import picture

from mmrlhf.conversation import IMAGE, Conversation, Turn


def test_several_pictures_stand_where_placeholders_say(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / "set" / f"{name}.jpg").write_bytes(picture(shade=ord(name)))
    turns = [human("Image1 <ImageHere>; Image2 <ImageHere>; which?"), {"from": "bot", "value": "good"}]
    worse = [turns[0], {"from": "bot", "value": "bad"}]
    row = {"id": 1, "conversations_a": turns, "conversations_b": worse, "image": ["b.jpg", "a.jpg"]}
    (tmp_path / "set" / "rows.json").write_text(json.dumps([row]))
    [group] = groups(tmp_path / "set")
    parts = ("Image1 ", IMAGE, "; Image2 ", IMAGE, "; which?")
    assert group.prompt == Conversation((Turn("user", parts),))
    assert [media.data[0] for media in group.media] == [picture(shade=ord(name)) for name in "ba"]


def test_pictures_of_the_rejected_answer_are_its_own(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {**ROWS["ms_swift"], "rejected_response": None, "rejected_images": ["v0/0.jpeg"]})
    (root / "v0" / "0.jpeg").write_bytes(picture(shade=99))
    [group] = groups(root)
    assert not group.media and [response.text for response in group.responses] == ["good", "good"]
    assert [response.media[0].data[0] for response in group.responses] == [picture(), picture(shade=99)]
