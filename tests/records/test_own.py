"""A function of the user's own is an importer; docs/data.md shows one, and this runs it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from stand_ins.sample_groups import write_pictures

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.media.images import decode_image
from mmrlhf.records.draft import Draft, Rejection
from mmrlhf.records.own import find_function, import_own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_ten_lines_of_the_documentation(here: Path, project: Path) -> None:
    code = re.search(r"```python\n(# my_votes\.py\n.*?)```", (project / "docs" / "data.md").read_text(), re.DOTALL)
    assert code is not None and len(code[1].strip().splitlines()) <= 10
    (here / "my_votes.py").write_text(code[1])
    (here / "votes.csv").write_text("id,file,question,good,bad\n1,a.jpg,what?,yes,no\n2,b.jpg,who?,me,you\n")
    items = list(import_own(here, function="my_votes.read", source="votes"))
    assert [type(item) for item in items] == [Draft, Draft]
    first = items[0]
    assert isinstance(first, Draft)
    assert (first.id, first.media[0].ref, first.group.prompt.plain, first.group.source) == (
        "1",
        "a.jpg",
        "what?",
        "votes",
    )
    assert [(response.text, response.rank) for response in first.group.responses] == [("yes", 1), ("no", 2)]


def test_pairs_are_regrouped_and_bad_records_listed(here: Path) -> None:
    (here / "own_pairs.py").write_text(
        "def read(root):\n"
        "    yield {'id': 1, 'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'image': root.name}\n"
        "    yield {'id': 1, 'prompt': 'p', 'chosen': 'a', 'rejected': 'c', 'image': root.name}\n"
        "    yield {'id': 2, 'prompt': float('nan'), 'chosen': 'a', 'rejected': 'b'}\n"
        "    yield 'text'\n"
    )
    items = list(import_own(here, function="own_pairs.read"))
    assert [item.where.split(" ")[0] for item in items if isinstance(item, Rejection)] == [
        "own_pairs.read:3:prompt",
        "own_pairs.read:4",
    ]
    [draft] = [item for item in items if isinstance(item, Draft)]
    assert len(draft.group.responses) == 3 and draft.media[0].ref == here.name
    with pytest.raises(DataError, match="own_pairs.read:3"):
        list(import_own(here, function="own_pairs.read", on_bad_line="error"))


def test_media_may_lie_in_what_it_yields_and_prompts_be_conversations(here: Path) -> None:
    """Bytes, an image column, a data URL and what Pillow has opened; the function is called once."""
    (here / "own_media.py").write_text(
        "import base64, io\n"
        "from PIL import Image\n"
        "calls = []\n"
        "def read(root):\n"
        "    calls.append(root)\n"
        "    data = (root / 'a.jpg').read_bytes()\n"
        "    url = 'data:image/jpeg;base64,' + base64.b64encode(data).decode()\n"
        "    column, opened = {'bytes': data, 'path': None}, Image.open(io.BytesIO(data))\n"
        "    for number, image in enumerate([data, column, url, opened]):\n"
        "        parts = [{'type': 'text', 'text': 'see '}, {'type': 'image', 'image': image}]\n"
        "        turns = [{'role': 'system', 'content': 'be kind'}, {'role': 'user', 'content': parts}]\n"
        "        answers = [{'text': 'a', 'rank': 1}, {'text': 'b', 'rank': 2}]\n"
        "        yield {'id': number, 'prompt': turns, 'responses': answers}\n"
    )
    write_pictures(here, "a.jpg")
    drafts = [item for item in import_own(here, function="own_media.read") if isinstance(item, Draft)]
    groups = [pickle.loads(pickle.dumps(draft)).load() for draft in drafts]
    assert {group.prompt for group in groups} == {
        Conversation((Turn("system", ("be kind",)), Turn("user", ("see ", IMAGE))))
    }
    data = (here / "a.jpg").read_bytes()
    assert [group.media[0].data[0] == data for group in groups] == [True, True, True, False]
    assert decode_image(groups[3].media[0].data[0], where="x").tobytes() == decode_image(data, where="x").tobytes()
    assert len(find_function("own_media.read").__globals__["calls"]) == 1


def test_its_own_mistakes_are_not_caught(here: Path) -> None:
    (here / "own_wrong.py").write_text("def read(root):\n    yield {}['id']\n\n\nnumber = 3\n")
    with pytest.raises(KeyError):
        list(import_own(here, function="own_wrong.read"))
    for name in ("own_wrong.number", "own_wrong.missing", "nowhere.read", "read", "", "own_wrong."):
        with pytest.raises(ConfigError, match="importer cannot be found"):
            find_function(name)
    (here / "own_needs.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        find_function("own_needs.read")


def test_what_pillow_has_opened_is_shown_upright_in_any_mode_and_a_broken_one_is_listed(here: Path) -> None:
    (here / "opened.py").write_text(
        "import io\n"
        "from PIL import Image\n"
        "def read(root):\n"
        "    turned = Image.Exif()\n"
        "    turned[0x0112] = 6\n"
        "    data = io.BytesIO()\n"
        "    Image.effect_noise((40, 20), 80).save(data, 'JPEG', exif=turned)\n"
        "    red = Image.new('RGB', (40, 20), 'red')\n"
        "    cut = io.BytesIO(data.getvalue()[:-300])\n"
        "    for image in [Image.open(data), red.convert('CMYK'), Image.open(cut), red.convert('YCbCr'), red]:\n"
        "        yield {'id': 1, 'prompt': image.mode, 'image': image, 'chosen': 'a', 'rejected': 'b'}\n"
    )
    items = list(import_own(here, function="opened.read"))
    pictures = [decode_image(item.load().media[0].data[0], where="x") for item in items if isinstance(item, Draft)]
    assert [picture.size for picture in pictures] == [(20, 40), (40, 20), (40, 20), (40, 20)]
    assert [picture.getpixel((5, 5))[0] > 250 for picture in pictures[1:]] == [True] * 3
    [bad] = [item for item in items if isinstance(item, Rejection)]
    assert "opened cannot be read" in bad.reason and bad.where.startswith("opened.read:3")
