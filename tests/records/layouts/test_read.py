"""What `import_layout` chooses: the layout, the folder of media, and what it says where none fits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from stand_ins.published_rows import PAIR, ROWS, groups, write
from stand_ins.sample_groups import picture, write_pictures

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.records.layouts.read import import_layout


@pytest.mark.parametrize(
    ("path", "options"), [("0.jpg", {}), ("merged_images/0.jpg", {}), ("v0/1.jpeg", {"media_folder": "."})]
)
def test_pictures_lie_in_the_folder_that_a_layout_is_published_with(
    path: str, options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the rows name it themselves, or another folder is set."""
    row = {name: value for name, value in ROWS["vlfeedback"].items() if name != "image"}
    root = write(tmp_path / "set", {**row, "img_path": path})
    write_pictures(root, *["unused.jpg"] * 3, "merged_images/0.jpg")
    with caplog.at_level(logging.INFO):
        [group] = groups(root, **options)
    assert group.media[0].data[0] == (picture() if options else picture(shade=3))
    assert ("as this layout is published" in caplog.text) == (path == "0.jpg")


def test_what_no_layout_has_is_an_error_that_says_what_could_be_done(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layout is known") as caught:
        import_layout(write(tmp_path / "set", {"instruction": "q", "output": "a"}))
    assert "instruction" in str(caught.value.given) and "data=converted" in str(caught.value.fix)
    with pytest.raises(DataError, match="no layout is known") as caught:
        import_layout(write(tmp_path / "wrapped", {"data": [PAIR]}))
    assert "'data'" in str(caught.value.given)
    with pytest.raises(ConfigError, match="no layout of this name"):
        import_layout(tmp_path / "set", layout="vl_feedback")


def test_the_wrong_layout_suggests_the_one_that_fits(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ROWS["vlfeedback"])
    with pytest.raises(DataError, match=r"no line of the file(?s:.)*data=vlfeedback"):
        list(import_layout(root, layout="rlaif_v", on_bad_line="reject"))
    with pytest.raises(DataError, match="no line of the file") as caught:
        list(import_layout(write(tmp_path / "bad", {**ROWS["internvl"], "image": ""}), on_bad_line="reject"))
    assert "data=" not in str(caught.value.fix), "auto is set, and the layout is right"
