"""Code in the store: what a stage can reach counts, comments do not; and what a run makes of a change."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrlhf.chain import code
from mmrlhf.chain.artifact import Artifact
from mmrlhf.chain.code import changed, closure, describe, joined, split_closure
from mmrlhf.chain.order import plan_chain, stage_function, with_paths
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.store import Store
from mmrlhf.chain.worker import StageCall
from mmrlhf.errors import ConfigError, DataError

Write = Callable[..., None]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of the user's own into a folder on the path; forgotten as an import each time."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    # Python takes a compiled file for that of its source while the second and the size of both are the same
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: dict[str, int] = {}

    def write(name: str, text: str) -> None:
        file = folder.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        written[name] = written.get(name, 0) + 1
        for known in [module for module in sys.modules if module.partition(".")[0] == name.partition(".")[0]]:
            del sys.modules[known]

    return write


def test_a_closure_follows_imports_of_every_form(modules: Write) -> None:
    modules(
        "own_stage", "import own_a\ndef run(out, *, runtime):\n    from own_pack.inner import deep\n    import torch\n"
    )
    modules("own_a", "from own_pack import *\n")
    modules("own_pack.__init__", "from . import beside\nfrom .inner.deep import x\n")
    modules("own_pack.beside", "from .inner import missing_name\n")
    modules("own_pack.inner.__init__", "")
    modules("own_pack.inner.deep", "from ..far import y\nx = y\n")
    modules("own_pack.far", "y = 1\n")
    modules("own_other", "")
    names = {
        "own_stage",
        "own_a",
        "own_pack",
        "own_pack.beside",
        "own_pack.inner",
        "own_pack.inner.deep",
        "own_pack.far",
    }
    assert set(closure(["own_stage"])) == names, "and nothing that is installed"
    assert "own_pack" not in sys.modules and "own_stage" not in sys.modules, "nothing is imported"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Doc."""\ndef f(a):\n    """Other."""\n    # why\n    return a + 1\n', True),
        ("def f(a):\n\n    return (a +\n        1)\n", True),
        ("def f(a):\n    return a + 2\n", False),
        ("def f(a, b=1):\n    return a + 1\n", False),
        ("def f(a):\n    'x'\n    return a + 1\nY = 'x'\n", False),
    ],
)
def test_words_and_layout_do_not_count(modules: Write, text: str, same: bool) -> None:
    modules("own_words", "def f(a):\n    return a + 1\n")
    before = closure(["own_words"])
    modules("own_words", text)
    assert (closure(["own_words"]) == before) is same


def test_what_a_setting_names_counts_at_any_depth(modules: Write) -> None:
    modules("own_judge", "import own_scale\ndef judge(meta, text): return 0\n")
    modules("own_scale", "")
    settings = {"a": [{"judge": {"_target_": "own_judge.judge"}}], "n": 0.5, "hub": "org/model", "file": "a.jsonl"}
    package, own = split_closure("mmrlhf.stages.score.run", settings)
    assert set(own) == {"own_judge", "own_scale"}
    assert "mmrlhf.stages.score" in package and "mmrlhf.models.forward" in package
    assert not {"mmrlhf.app", "mmrlhf.chain.runner", "mmrlhf.stages.mmdpo"} & set(package)
    assert split_closure("mmrlhf.stages.score.run", {"importer": "own_judge.judge"})[1] == own


def test_changes_are_named_few() -> None:
    assert changed({"a": "1", "b": "1"}, {"b": "2", "c": "1"}) == ["a", "b", "c"]
    assert describe(["mmrlhf.a", "b"]) == "a, b" and describe(list("abcde")) == "a, b, c and 2 more"


STAGE = """
import json
from mmrlhf.losses import links
VERSION = {version}
PROMISES = ("data.json",)
def run(out, *, judge=None, training=None, runtime):
    if {writes}:
        (out / "data.json").write_text("{value}")
    return {{"value": {value}}}
"""


def _run(tmp_path: Path, settings: dict[str, Any] | None = None, **options: Any) -> Artifact:
    def invoke(call: StageCall) -> Any:
        function = stage_function(call.target)
        runtime = SimpleNamespace(trainer=partial(dict, **call.runtime["trainer"]))
        return function(Path(call.out), **with_paths(function, call.settings), runtime=runtime)

    node = {"_target_": "own_stage.run", **(settings or {})}
    runner = Runner(Store(tmp_path / "store"), invoke, runtime={"trainer": {"devices": 1}}, work=tmp_path, **options)
    return runner.run(plan_chain("own", {"own": node}.__getitem__, ["own"]))[0]


def _stage(modules: Write, version: int = 1, value: int = 1, writes: bool = True) -> None:
    modules("own_stage", STAGE.format(version=version, value=value, writes=writes))


def test_own_code_and_versions_build_anew(tmp_path: Path, modules: Write) -> None:
    _stage(modules)
    modules("own_judge", "def judge(): return 1\n")
    judged = {"judge": {"_target_": "own_judge.judge"}}
    first = _run(tmp_path, judged)
    assert not first.reused and _run(tmp_path, judged).reused
    record = json.loads((first.folder / "artifact.json").read_text())["code"]
    assert set(record["own"]) == {"own_stage", "own_judge"} and record["version"] == 1
    assert {"mmrlhf.losses.links", "mmrlhf"} <= set(record["package"]) and "mmrlhf.app" not in record["package"]
    modules("own_judge", "def judge(): return 2\n")
    assert not _run(tmp_path, judged).reused, "an edited judge"
    _stage(modules, value=2)
    second = _run(tmp_path, judged)
    assert not second.reused and second.summary == {"value": 2}, "an edited stage"
    modules("own_judge", "def judge(): return 1\n")
    _stage(modules)
    assert _run(tmp_path, judged).folder == first.folder, "and back again"


@pytest.mark.parametrize("policy", ["warn", "ignore", "rebuild"])
def test_another_version_is_built_whatever_is_said(
    tmp_path: Path, modules: Write, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stage(modules)
    _run(tmp_path, code=policy)
    stage_function("own_stage.run")
    monkeypatch.setattr(sys.modules["own_stage"], "VERSION", 2)  # without another word in its code
    assert not _run(tmp_path, code=policy).reused


def test_a_result_that_lacks_what_is_promised_is_not_published(tmp_path: Path, modules: Write) -> None:
    _stage(modules, writes=False)
    with pytest.raises(DataError, match="no data.json"):
        _run(tmp_path)
    assert not list(tmp_path.glob("store/own/*/artifact.json")) and list(tmp_path.glob("store/own/*.building"))


@pytest.fixture
def our_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what stands for this package's source: a changed file there is a change of our code."""
    root = tmp_path / "copy"
    (root / "mmrlhf" / "losses").mkdir(parents=True)
    for name in ("__init__.py", "losses/__init__.py", "losses/links.py"):
        (root / "mmrlhf" / name).write_text("x = 1\n")
    monkeypatch.setattr(code, "_ROOT", root)
    return root / "mmrlhf"


def test_our_own_code_is_said_or_decides(
    tmp_path: Path, modules: Write, our_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _stage(modules)
    first = _run(tmp_path)
    assert set(first.package_code) == {"mmrlhf", "mmrlhf.losses", "mmrlhf.losses.links"}
    (our_package / "losses" / "links.py").write_text("# a remark\nx = 1\n")
    assert _run(tmp_path).reused and "code has changed" not in caplog.text
    (our_package / "losses" / "links.py").write_text("x = 2\n")
    caplog.clear()
    assert _run(tmp_path).folder == first.folder
    said = [line for line in caplog.messages if "code has changed" in line]
    assert len(said) == 1 and "losses.links" in said[0] and "code=rebuild" in said[0]
    caplog.clear()
    assert _run(tmp_path, code="ignore").reused and "code has changed" not in caplog.text
    again = _run(tmp_path, code="rebuild")
    assert not again.reused and again.folder != first.folder and "losses.links" in caplog.text
    caplog.clear()
    assert _run(tmp_path).folder == _run(tmp_path, code="rebuild").folder == again.folder, (
        "the one of exactly this code"
    )
    assert "code has changed" not in caplog.text
    (our_package / "losses" / "links.py").write_text("x = 1\n")
    assert _run(tmp_path).folder == first.folder and "code has changed" not in caplog.text


def test_what_was_built_last_is_what_other_code_reuses(
    tmp_path: Path, modules: Write, our_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not what was built first: whoever said `code=rebuild` once does not get the old one back after the next pull."""
    links = our_package / "losses" / "links.py"
    _stage(modules)
    built = {}
    for number in (1, 2, 3):
        links.write_text(f"x = {number}\n")
        built[number] = _run(tmp_path, code="rebuild")
        record = built[number].folder / "artifact.json"
        os.utime(record, (number, number))
    assert not any(artifact.reused for artifact in built.values())
    links.write_text("x = 4\n")
    caplog.clear()
    found = _run(tmp_path)
    assert found.reused and found.folder == built[3].folder and "reused although its code has changed" in caplog.text
    os.utime(built[2].folder / "artifact.json", (9, 9))
    assert _run(tmp_path).folder == built[2].folder
    (built[2].folder / "artifact.json").write_text("{")
    assert _run(tmp_path).folder == built[3].folder, "a damaged record is nobody's"
    shutil.rmtree(built[1].folder)
    assert _run(tmp_path).folder == built[3].folder, "the first may be gone"
    _stage(modules, version=2)
    assert not _run(tmp_path).reused, "another version is another artefact"


STOPS = """
from mmrlhf.losses import links
def run(out, *, runtime):
    left = sorted(path.name for path in out.iterdir() if path.name != ".begun.json")
    (out / "part{{}}".format(len(left))).touch()
    if len(left) < {parts}:
        raise RuntimeError("power cut")
    return {{"left": left}}
"""


def _stopped(tmp_path: Path, modules: Write, times: int = 1) -> dict[str, Any]:
    """Stop a stage; what the folder that it leaves says."""
    modules("own_stage", STOPS.format(parts=2))
    for _ in range(times):
        with pytest.raises(RuntimeError, match="power cut"):
            _run(tmp_path)
    (building,) = tmp_path.glob("store/own/*.building")
    return json.loads((building / ".begun.json").read_text())


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [line for line in caplog.messages if " code " in line and line.startswith("own:")]
    caplog.clear()
    return lines


@pytest.mark.parametrize("policy", ["warn", "ignore", "rebuild"])
def test_what_other_code_has_begun_is_said_or_starts_anew(
    tmp_path: Path, modules: Write, our_package: Path, caplog: pytest.LogCaptureFixture, policy: Any
) -> None:
    caplog.set_level("INFO")
    record = _stopped(tmp_path, modules)
    began = record["code"]["package"]
    assert set(began) == {"mmrlhf", "mmrlhf.losses", "mmrlhf.losses.links"} and record["stage"] == "own"
    with pytest.raises(RuntimeError, match="power cut"):
        _run(tmp_path, code=policy)
    assert not _said(caplog), "the same code goes on without a word"
    (our_package / "losses" / "links.py").write_text("x = 2\n")
    if policy == "rebuild":
        for _ in range(2):
            with pytest.raises(RuntimeError, match="power cut"):
                _run(tmp_path, code=policy)
    built = _run(tmp_path, code=policy)
    said = _said(caplog)
    assert built.summary == {"left": ["part0", "part1"]}
    assert len(said) == (policy != "ignore") and all("losses.links" in line for line in said)
    final = json.loads((built.folder / "artifact.json").read_text())["code"]["package"]
    now = code.closure(["mmrlhf.losses.links"])
    if policy == "rebuild":
        assert final == now and "starts anew" in said[0]
    else:
        assert final == {**now, "mmrlhf.losses.links": f"{began['mmrlhf.losses.links']}+{now['mmrlhf.losses.links']}"}
        again = _run(tmp_path, code="warn")
        assert again.reused and "losses.links" in "".join(_said(caplog)), "neither code has made all of it"


@pytest.mark.parametrize("damage", [None, "", "[]", '{"code": {"package": 3}}'])
def test_what_does_not_say_who_began_it_counts_as_of_other_code(
    tmp_path: Path, modules: Write, our_package: Path, caplog: pytest.LogCaptureFixture, damage: str | None
) -> None:
    """As a version of this package that kept no record, or a crash in its first moment, leaves it."""
    _stopped(tmp_path, modules, times=2)
    (building,) = tmp_path.glob("store/own/*.building")
    (building / ".begun.json").unlink()
    if damage is not None:
        (building / ".begun.json").write_text(damage)
    caplog.clear()
    assert _run(tmp_path).summary == {"left": ["part0", "part1"]}
    (line,) = _said(caplog)
    assert "goes on with what other code has begun" in line and "code=rebuild" in line


def test_codes_that_took_turns_are_all_remembered() -> None:
    first, second = {"a": "1", "b": "1"}, {"a": "2", "b": "1", "c": "1"}
    both = joined(first, second)
    assert both == {"a": "1+2", "b": "1", "c": "+1"}
    assert joined(both, second) == both and joined(both, first)["a"] == "1+2" and joined(first, first) == first
    assert changed(both, second) == ["a", "c"] and joined(second, first)["c"] == "1+"


def test_callbacks_that_change_results_count_for_stages_that_train(tmp_path: Path, modules: Write) -> None:
    _stage(modules)
    modules("own_callback", "class Noisy: pass\n")
    noisy = [{"_target_": "own_callback.Noisy", "level": 1}]
    trains: dict[str, Any] = {"training": {}}
    assert not _run(tmp_path, trains).reused and not _run(tmp_path, trains, callbacks=noisy).reused
    assert _run(tmp_path, trains, callbacks=noisy).reused
    modules("own_callback", "class Noisy: level = 2\n")
    assert not _run(tmp_path, trains, callbacks=noisy).reused, "its code"
    assert not _run(tmp_path, trains, callbacks=[{**noisy[0], "level": 2}]).reused, "its settings"
    assert not _run(tmp_path).reused and _run(tmp_path, callbacks=noisy).reused, "nobody calls them in other stages"


def test_an_unknown_policy_is_refused() -> None:
    from omegaconf import OmegaConf

    from mmrlhf.composition.config import read_code_policy

    assert read_code_policy(OmegaConf.create({"code": "warn"})) == "warn"
    with pytest.raises(ConfigError, match="rebuild, warn or ignore"):
        read_code_policy(OmegaConf.create({"code": "sometimes"}))
