"""What a store holds and what pruning takes: never what a kept run needs, and never what is being built."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from mmrlhf.chain.artifact import Artifact, Recipe
from mmrlhf.chain.inventory import Holding, remove, take_stock
from mmrlhf.chain.order import plan_chain
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.store import Store
from mmrlhf.chain.worker import StageCall
from mmrlhf.composition.inventory_command import show_or_prune
from mmrlhf.errors import ConfigError

FINGERPRINTS = {name: (f"{number}" * 12 + name * 52)[:64] for number, name in enumerate("abcdef")}


def _artifact(store: Store, name: str, made_from: str = "", sources: dict[str, str] | None = None) -> Artifact:
    def make(out: Path) -> dict[str, Any]:
        (out / "data").write_bytes(b"x" * 1000)
        return {}

    inputs = {"up": FINGERPRINTS[made_from]} if made_from else {}
    return store.build(Recipe("pack", FINGERPRINTS[name], inputs=inputs, sources=sources or {}), make)


def _run(folder: Path, *artifacts: Artifact) -> Path:
    (folder / "artifacts").mkdir(parents=True)
    for artifact in artifacts:
        (folder / "artifacts" / artifact.stage).symlink_to(artifact.folder)
    return folder


def _names(holdings: list[Holding]) -> list[str]:
    return [holding.folder.name[0] for holding in holdings]


def _by_name(tmp_path: Path) -> dict[str, Holding]:
    found = take_stock(tmp_path / "store", [tmp_path / "outputs", tmp_path / "multirun"])
    return {holding.folder.name[0]: holding for holding in found}


def test_what_runs_refer_to_is_kept_with_all_it_was_made_from(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = _artifact(store, "a")
    given = _artifact(store, "b", sources={"some/path": f"artifact:{FINGERPRINTS['a']}/model"})
    linked = _artifact(store, "c", made_from="b")
    _artifact(store, "d", made_from="c")
    used = _artifact(store, "e")
    _run(tmp_path / "multirun" / "sweep" / "0", linked)
    (tmp_path / "elsewhere").mkdir()
    store.note_use(used, tmp_path / "elsewhere")
    found = _by_name(tmp_path)
    assert {name for name, holding in found.items() if holding.kept} == {"0", "1", "2", "4"}
    assert found["2"].runs == (str(tmp_path / "multirun" / "sweep" / "0"),) and found["0"].runs == ()
    assert found["4"].runs == (str(tmp_path / "elsewhere"),) and found["0"].bytes >= 1000
    assert _names([holding for holding in found.values() if holding.removable]) == ["3"]
    shutil.rmtree(tmp_path / "multirun")
    shutil.rmtree(tmp_path / "elsewhere")
    assert [name for name, holding in _by_name(tmp_path).items() if holding.removable] == ["0", "1", "2", "3", "4"]
    assert first.folder.exists() and given.folder.exists(), "looking removes nothing"


def test_a_use_renews_the_age(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    artifact = _artifact(store, "a")
    store.note_use(artifact, tmp_path / "run")
    stamp = artifact.folder.with_name(artifact.folder.name + ".used")
    os.utime(stamp, (1, 1))
    assert _by_name(tmp_path)["0"].age > 1e6
    store.note_use(artifact, tmp_path / "run")
    assert _by_name(tmp_path)["0"].age < 100 and stamp.read_text() == f"{tmp_path / 'run'}\n", "each run once"


def test_unfinished_work_goes_after_a_day_and_never_under_a_lock(tmp_path: Path) -> None:
    old = time.time() - 25 * 3600
    for name in ("0" * 12, "1" * 12, "2" * 12):
        folder = tmp_path / "store" / "sft" / f"{name}.building"
        folder.mkdir(parents=True)
        (folder / "half").touch()
        if name[0] != "0":
            os.utime(folder / "half", (old, old))
    other = tmp_path / "store" / "vision_features" / "model"
    other.mkdir(parents=True)
    with FileLock(tmp_path / "store" / "sft" / f"{'2' * 12}.lock"):
        found = _by_name(tmp_path)
        assert [found[name].removable for name in "012"] == [False, True, False] and found["2"].locked
        gone = remove([found["1"], found["2"]])
    assert _names(gone) == ["1"] and other.is_dir()
    assert sorted(path.name[0] for path in (tmp_path / "store" / "sft").glob("*.building")) == ["0", "2"]


def _stopped(store: Store, name: str, run: Path, made_from: str = "") -> Path:
    """What a run of two days ago has begun and not finished."""
    inputs = {"up": FINGERPRINTS[made_from]} if made_from else {}
    recipe = Recipe("pack", FINGERPRINTS[name], inputs=inputs)

    def power_cut(out: Path) -> dict[str, Any]:
        (out / "checkpoint").write_bytes(b"x" * 100)
        raise RuntimeError("power cut")

    store.note_use(recipe, run)
    with pytest.raises(RuntimeError, match="power cut"):
        store.build(recipe, power_cut)
    building = store.building(recipe)
    for path in (*building.iterdir(), building, building.with_name(building.stem + ".used")):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    return building


def test_what_a_kept_run_has_begun_is_kept_with_all_it_is_made_from(tmp_path: Path) -> None:
    """A training of weeks that waits for its turn on a cluster is no rubbish."""
    store, run = Store(tmp_path / "store"), tmp_path / "outputs" / "mine"
    run.mkdir(parents=True)
    _artifact(store, "a")
    building = _stopped(store, "b", run, made_from="a")
    found = {holding.folder.name: holding for holding in take_stock(tmp_path / "store", [tmp_path / "outputs"])}
    assert not any(holding.removable for holding in found.values())
    assert found[building.name].runs == (str(run),) and found[building.name].kind == "unfinished"
    run.rmdir()
    found = {holding.folder.name: holding for holding in take_stock(tmp_path / "store", [tmp_path / "outputs"])}
    assert all(holding.removable for holding in found.values()) and len(found) == 2
    assert len(remove(list(found.values()))) == 2
    assert sorted(path.suffix for path in (tmp_path / "store" / "pack").iterdir()) == [".lock", ".lock"]


def test_the_runner_notes_its_run_before_a_stage_begins(tmp_path: Path) -> None:
    noted: list[bool] = []

    def invoke(call: StageCall) -> dict[str, Any]:
        noted.append(any(stamp.read_text() == f"{tmp_path}\n" for stamp in (tmp_path / "store").glob("own/*.used")))
        raise RuntimeError("power cut")

    runner = Runner(Store(tmp_path / "store"), invoke, runtime={}, work=tmp_path)
    nodes = {"own": {"_target_": "stand_ins.fake_stages.source"}}
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(plan_chain("own", nodes.__getitem__, list(nodes)))
    assert noted == [True]


def test_what_has_been_used_since_the_question_was_asked_stays(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "store"), tmp_path / "elsewhere"
    used, unused = _artifact(store, "a"), _artifact(store, "b")
    store.note_use(unused, tmp_path / "gone")
    begun = _stopped(store, "c", tmp_path / "gone")
    doomed = [holding for holding in take_stock(tmp_path / "store", []) if holding.removable]
    assert len(doomed) == 3
    time.sleep(0.01)
    store.note_use(used, run)
    store.note_use(Recipe("pack", FINGERPRINTS["c"]), run)
    assert [holding.folder for holding in remove(doomed)] == [unused.folder]
    assert used.folder.is_dir() and begun.is_dir()
    assert sorted(stamp.name[0] for stamp in (tmp_path / "store" / "pack").glob("*.used")) == ["0", "2"]


def test_everything_in_a_store_is_listed(tmp_path: Path) -> None:
    """What a killed removal leaves takes room, and so do features of pictures, which are no stage's."""
    store = Store(tmp_path / "store")
    _artifact(store, "a")
    names = (f".{'1' * 12}.{'e' * 16}.part", f".{'2' * 12}.building.{'e' * 16}.part", f"{'3' * 12}.processes")
    for folder in (*(f"pack/{name}" for name in names), "vision_features/a-model"):
        (tmp_path / "store" / folder).mkdir(parents=True)
        (tmp_path / "store" / folder / "data").write_bytes(b"x" * 100)
    found = take_stock(tmp_path / "store", [])
    assert sorted(holding.kind for holding in found) == ["exchange", "finished", "leftover", "leftover", "other"]
    assert all(holding.bytes >= 100 for holding in found)
    with FileLock(tmp_path / "store" / "pack" / f"{'1' * 12}.lock"):
        removable = [holding for holding in take_stock(tmp_path / "store", []) if holding.removable]
    assert [holding.kind for holding in removable] == ["leftover", "finished"], "one is being removed just now"
    assert len(remove([holding for holding in found if holding.removable])) == 3
    assert [holding.kind for holding in take_stock(tmp_path / "store", [])] == ["exchange", "other"]


def test_names_that_are_no_text_are_noted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    run.mkdir()
    store.note_use(_artifact(store, "a"), run)
    store.note_use(_artifact(store, "a"), run)
    assert _by_name(tmp_path)["0"].runs == (str(run),)


@pytest.fixture
def place(tmp_path: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    store = Store(own_store)
    _run(tmp_path / "outputs" / "mine", _artifact(store, "a"))
    _artifact(store, "b")
    return own_store / "pack"


def _say(*words: str) -> str:
    console = Console(width=120, record=True)
    show_or_prune(words, console)
    return console.export_text()


def test_the_command_lists_and_removes_only_when_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _say()
    assert "0" * 12 in listed and "1" * 12 in listed and "outputs/mine" in listed and "2 folders" in listed
    with pytest.raises(ConfigError, match="--yes") as refused:
        _say("prune")
    assert "1 folders" in str(refused.value.given) and len(list(place.glob("*/artifact.json"))) == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "n")
    _say("prune")
    assert len(list(place.glob("*/artifact.json"))) == 2, "nobody said yes"
    said = _say("prune", "--yes")
    assert "1" * 12 in said and "removed 1 folders" in said
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["0" * 12]
    assert json.loads((place / ("0" * 12) / "artifact.json").read_text())["fingerprint"] == FINGERPRINTS["a"]
    assert "nothing to remove" in _say("prune", "--yes")


@pytest.mark.parametrize("words", [["list"], ["--yes"], ["prune", "-y"]])
def test_other_words_are_refused(place: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="prune"):
        _say(*words)
