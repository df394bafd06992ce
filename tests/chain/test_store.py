"""Laws of the store: built once, appears whole or not at all, survives a crash, is shared between processes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from mmrlhf.chain.artifact import Recipe
from mmrlhf.chain.store import SCRATCH, Store
from mmrlhf.errors import DataError
from mmrlhf.terminal.lines import duration

RECIPE = Recipe("pack", "0123456789abcdef" * 4, {"size": 3}, {"world": "f" * 64})


def _write(out: Path) -> dict:
    (out / "data").write_text("1")
    return {"groups": 7}


def test_built_once_then_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    with caplog.at_level("INFO"):
        built = store.build(RECIPE, _write)
        reused = store.build(RECIPE, lambda out: pytest.fail("built twice"))
    assert (built.reused, reused.reused) == (False, True)
    assert built.folder == reused.folder == tmp_path / "pack" / "0123456789ab"
    assert reused.summary == {"groups": 7} and reused.seconds == built.seconds
    assert "pack: built in 0.0 s" in caplog.text and "pack: reused" in caplog.text


def test_a_crash_leaves_no_artefact_and_is_continued(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def crash(out: Path) -> dict:
        (out / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        store.build(RECIPE, crash)
    assert store.find(RECIPE) is None
    folder = store.build(RECIPE, lambda out: {"continued": (out / "half").exists()}).folder
    assert json.loads((folder / "artifact.json").read_text())["summary"] == {"continued": True}
    assert not store.building(RECIPE).exists()


def test_what_a_stage_continues_from_goes_once_the_artefact_is_finished(tmp_path: Path) -> None:
    """A stop between the stage's end and the rename must not cost its training."""
    store = Store(tmp_path)

    def stopped(out: Path) -> dict:
        (out / SCRATCH).mkdir()
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        store.build(RECIPE, stopped)
    folder = store.build(RECIPE, lambda out: {"continued": (out / SCRATCH).exists()}).folder
    assert not (folder / SCRATCH).exists()
    found = store.find(RECIPE)
    assert found is not None and found.summary == {"continued": True}


def test_two_builders_at_once_build_once(tmp_path: Path) -> None:
    calls, results = [], []

    def slow(out: Path) -> dict:
        calls.append(out)
        time.sleep(0.3)
        return _write(out)

    def build() -> None:
        results.append(Store(tmp_path).build(RECIPE, slow))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(result.reused for result in results) == [False, True, True]


def test_another_artefact_under_the_name_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(RECIPE, _write)
    other = Recipe("pack", RECIPE.fingerprint[:12] + "0" * 52)
    with pytest.raises(DataError, match="another artefact"):
        store.find(other)


def test_waiting_ends_with_the_artefact_or_the_sign(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.wait(RECIPE, until=lambda: True) is None
    builder = threading.Timer(0.1, lambda: Store(tmp_path).build(RECIPE, _write))
    builder.start()
    found = store.wait(RECIPE, poll=0.02)
    builder.join()
    assert found is not None and found.summary == {"groups": 7}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_finished_folder_without_its_record_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.folder(RECIPE).mkdir(parents=True)
    (store.folder(RECIPE) / "other").touch()
    built = store.build(RECIPE, _write)
    assert {path.name for path in built.folder.iterdir()} == {"data", "artifact.json"}
    assert "no record" in caplog.text and store.find(RECIPE) is not None


def test_passwords_are_used_and_not_written(tmp_path: Path) -> None:
    address = "https://me:s3cret@host/a?X-Amz-Signature=signed&part=1"
    recipe = Recipe("pack", "b" * 64, {"shards": [{"at": address}]}, sources={address: "manifest:1"})
    folder = Store(tmp_path).build(recipe, lambda out: {"from": address}).folder
    written = (folder / "artifact.json").read_text()
    assert "s3cret" not in written and "signed" not in written and written.count("https://***@host/a?") == 3
    assert "part=1" in written and recipe.settings["shards"][0]["at"] == address
