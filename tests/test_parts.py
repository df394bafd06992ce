"""Laws of parts: what was finished is read back, whoever wrote it; what is damaged or of something else is refused."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import DataError
from mmrlhf.parts import ARTIFACT_FILE, Parts, artifact_of, begin, remedy

MADE_BY = {"policy": {"path": "tiny", "digest": "abc"}, "temperature": 1.0, "limits": [1, None]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def parts_of(folder: Path, **changes: Any) -> Parts:
    return Parts(folder, {**MADE_BY, **changes}, what="a test's work")


@given(said=JSON)
def test_what_was_written_is_read_by_the_next_run(tmp_path_factory: pytest.TempPathFactory, said: Any) -> None:
    folder = tmp_path_factory.mktemp("work") / "parts"
    assert parts_of(folder).read("000001") is None
    parts_of(folder).write("000001", {"said": said, "left_out": {}})
    assert parts_of(folder).read("000001") == {"said": said, "left_out": {}}
    assert parts_of(folder).read("000002") is None
    assert [path.name for path in folder.iterdir()] == ["000001.json"]


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_read_as_an_answer(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    content = {"said": {"k1": ["a red circle", "é"], "k2": [-0.25, 1e-9]}, "left_out": {"k3": "damaged"}}
    parts_of(folder).write("one", content)
    data = bytearray((folder / "one.json").read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (folder / "one.json").write_bytes(data)
    try:
        assert parts_of(folder).read("one") == content, "a space, or the case of a digit"
    except DataError as error:
        assert "one.json" in str(error)


@pytest.mark.parametrize("left", [0, 1, 20, -20, -3])
def test_a_part_that_was_cut_is_refused_and_deleting_it_is_enough(tmp_path: Path, left: int) -> None:
    for name in ("one", "two"):
        parts_of(tmp_path).write(name, {"said": name})
    file = tmp_path / "one.json"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DataError, match=r"damaged[\s\S]*one\.json[\s\S]*delete this file"):
        parts_of(tmp_path).read("one")
    file.unlink()
    assert parts_of(tmp_path).read("one") is None and parts_of(tmp_path).read("two") == {"said": "two"}


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{}", '{"made_by": [], "crc32": "0"}'])
def test_a_file_that_is_no_part_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(DataError, match=r"damaged[\s\S]*one\.json"):
        parts_of(tmp_path).read("one")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.7}, "temperature: before 1.0, now 0.7"),
        ({"policy": {"path": "tiny", "digest": "xyz"}}, "policy.digest: before 'abc', now 'xyz'"),
        ({"seed": 3}, "seed: before 'nothing', now 3"),
        ({"limits": [1, 2]}, r"limits: before \[1, None\], now \[1, 2\]"),
    ],
)
def test_a_part_of_something_else_is_refused_and_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    parts_of(tmp_path).write("one", {"said": 1})
    with pytest.raises(DataError, match=rf"a test's work was made by something else[\s\S]*one\.json[\s\S]*{said}"):
        parts_of(tmp_path, **change).read("one")
    parts_of(tmp_path, **change).write("one", {"said": 2})
    assert parts_of(tmp_path, **change).read("one") == {"said": 2}, "and can be made anew"


def test_what_makes_a_part_may_be_anything_that_json_holds(tmp_path: Path) -> None:
    """Tuples come back as lists; that is no difference."""
    Parts(tmp_path, {"size": (1, 2)}, what="x").write("one", {"said": (3,)})
    assert Parts(tmp_path, {"size": (1, 2)}, what="x").read("one") == {"said": [3]}
    with pytest.raises(ValueError, match="crc32"):
        parts_of(tmp_path).write("one", {"crc32": 1})


def _write_many(folder: Path, start: int) -> None:
    for number in range(start, 60, 2):
        parts_of(folder).write(f"{number:03d}", {"said": number})
        parts_of(folder).write("both", {"said": "the same"})


def test_ranks_write_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(tmp_path / "parts", start)) for start in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    parts = parts_of(tmp_path / "parts")
    assert [parts.read(f"{number:03d}") for number in range(60)] == [{"said": number} for number in range(60)]
    assert parts.read("both") == {"said": "the same"} and len(list((tmp_path / "parts").iterdir())) == 61


def _begin(record: Path, value: int, results: Any) -> None:
    try:
        begin(record, {"value": value}, what="a table", read=lambda: json.loads(record.read_text()))
        results.put(value)
    except DataError:
        results.put(None)


def test_of_two_that_begin_differently_one_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    record = tmp_path / "new" / "_meta.json"
    processes = [context.Process(target=_begin, args=(record, value, results)) for value in (1, 2, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    kept = json.loads(record.read_text())["value"]
    said = [results.get() for _ in processes]
    assert sorted(value or 0 for value in said) == ([0, 1, 1] if kept == 1 else [0, 0, 2])


def test_a_finished_artefact_is_not_mended_by_running_again(tmp_path: Path) -> None:
    """Whatever is damaged in it is reused for ever, so the advice is to delete it: itself, not a run's link to it."""
    artifact = tmp_path / "score" / "0123456789ab"
    parts_of(artifact / "rewards").write("one", {"said": 1})
    file = artifact / "rewards" / "one.json"
    file.write_text("{")
    unfinished = "delete this file and run again: only this part is made anew"
    with pytest.raises(DataError) as caught:
        parts_of(artifact / "rewards").read("one")
    assert caught.value.fix == unfinished == remedy(file, unfinished)
    (artifact / ARTIFACT_FILE).touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "score").symlink_to(artifact)
    finished = f"delete {artifact}, which is reused as long as it is there, and run again: its stage makes it anew"
    for place in (artifact, artifact / "rewards"), (tmp_path / "run" / "score", tmp_path / "run" / "score" / "rewards"):
        with pytest.raises(DataError) as caught:
            parts_of(place[1]).read("one")
        assert caught.value.fix == finished == remedy(place[0], unfinished)
    assert remedy("https://host/score/x", unfinished) == remedy(tmp_path, unfinished) == unfinished


def test_an_artefact_is_found_from_what_lies_in_it_and_not_from_far_below(tmp_path: Path) -> None:
    """A run's folder links to it; an address lies in no folder of this machine."""
    artifact = tmp_path / "artifacts" / "score" / "1"
    part = artifact / "rewards" / "parts" / "part.parquet"
    part.parent.mkdir(parents=True)
    (artifact / ARTIFACT_FILE).touch()
    link = tmp_path / "run"
    link.symlink_to(artifact)
    for path in (artifact, artifact / "rewards", part):
        assert artifact_of(path) == artifact and f"delete {artifact}," in remedy(path, "again")
    assert artifact_of(link) == link and f"delete {artifact}," in remedy(link / "rewards", "again")
    far = part.parent / "files" / "shards.tar"
    assert artifact_of(far) is None and remedy(far, "again") == "again"
    assert artifact_of(f"s3://{artifact}/rewards") is None
