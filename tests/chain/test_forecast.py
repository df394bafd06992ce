"""`dry=true`: what would be reused and built and why, without running or writing anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mmrlhf.chain import code
from mmrlhf.chain.artifact import Recipe
from mmrlhf.chain.forecast import Forecast, forecast_chain, reasons
from mmrlhf.chain.order import plan_chain, stage_function, with_paths
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.store import Store
from mmrlhf.chain.worker import StageCall
from mmrlhf.reporting.outcome import show_forecast

FAKE = "stand_ins.fake_stages"
NODES: dict[str, dict[str, Any]] = {
    "world": {"_target_": f"{FAKE}.source", "size": 3},
    "sft": {"_target_": f"{FAKE}.train", "data": "stage:world"},
    "mmdpo": {"_target_": f"{FAKE}.train", "data": "stage:world", "policy": "stage:sft/model", "rate": 0.2},
}


def _invoke(call: StageCall) -> Any:
    function = stage_function(call.target)
    return function(
        Path(call.out), **with_paths(function, call.settings), runtime=SimpleNamespace(trainer=partial(dict, devices=1))
    )


def _never(call: StageCall) -> Mapping[str, Any]:
    pytest.fail(f"{call.stage} ran")


def _runner(tmp_path: Path, invoke: Any = _invoke, **options: Any) -> Runner:
    return Runner(Store(tmp_path / "store"), invoke, runtime={"trainer": {"devices": 1}}, work=tmp_path, **options)


def _build(tmp_path: Path, goal: str, nodes: Any = NODES, **options: Any) -> None:
    _runner(tmp_path, **options).run(plan_chain(goal, nodes.__getitem__, list(nodes)))


def _forecast(tmp_path: Path, nodes: Any = NODES, goal: str = "mmdpo", **options: Any) -> list[Forecast]:
    def files() -> list[str]:
        return sorted(str(path) for path in tmp_path.rglob("*"))

    before = files()
    found = forecast_chain(plan_chain(goal, nodes.__getitem__, list(nodes)), _runner(tmp_path, _never, **options))
    assert files() == before, "nothing is written"
    return found


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    world, sft, mmdpo = _forecast(tmp_path)
    assert (world.reused, world.why, world.seconds) == (False, "never built here", None)
    assert sft.why == "input world will be built; never built here"
    assert mmdpo.why.startswith("input world will be built; input sft will be built")


def test_everything_is_reused_and_a_changed_setting_is_named(tmp_path: Path) -> None:
    _build(tmp_path, "mmdpo")
    assert all(item.reused and not item.why for item in _forecast(tmp_path))
    changed = {**NODES, "mmdpo": {**NODES["mmdpo"], "rate": 0.5}}
    *others, mmdpo = _forecast(tmp_path, changed)
    assert all(item.reused for item in others)
    assert not mmdpo.reused and mmdpo.why == "rate 0.2 -> 0.5" and mmdpo.seconds is not None


def test_what_follows_an_unbuilt_stage_is_built(tmp_path: Path) -> None:
    _build(tmp_path, "mmdpo")
    world, sft, mmdpo = _forecast(tmp_path, {**NODES, "world": {**NODES["world"], "size": 4}})
    assert world.why == "size 3 -> 4"
    assert sft.why == "input world will be built" and mmdpo.why.count("will be built") == 2
    _build(tmp_path, "world", {**NODES, "world": {**NODES["world"], "size": 4}})
    world, sft, _ = _forecast(tmp_path, {**NODES, "world": {**NODES["world"], "size": 4}})
    assert world.reused and sft.why == "input world is another"


def test_the_nearest_artefact_gives_the_reason_and_the_time(tmp_path: Path) -> None:
    for rate in (0.2, 0.9):
        node = {**NODES["mmdpo"], "rate": rate, "policy": f"hub/{rate}"}
        _build(tmp_path, "mmdpo", {**NODES, "mmdpo": node})
    near = {**NODES, "mmdpo": {**NODES["mmdpo"], "rate": 0.8, "policy": "hub/0.9"}}
    assert _forecast(tmp_path, near)[-1].why == "rate 0.9 -> 0.8"


def test_other_data_under_the_same_path_are_a_reason(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "data.txt").write_text("12345")
    nodes = {"sft": {**NODES["sft"], "data": str(own)}}
    _build(tmp_path, "sft", nodes, inputs={str(own)})
    assert _forecast(tmp_path, nodes, "sft", inputs={str(own)})[0].reused
    (own / "data.txt").write_text("123456")
    os.utime(own / "data.txt", (1, 1))
    (found,) = _forecast(tmp_path, nodes, "sft", inputs={str(own)})
    assert not found.reused and found.why == f"{own} holds other data"


def test_versions_and_code_are_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(tmp_path, "world")
    monkeypatch.setattr("stand_ins.fake_stages.VERSION", 2, raising=False)
    assert _forecast(tmp_path, goal="world")[0].why == "version 1 -> 2"
    recipe = Recipe("s", "f" * 64, {}, own_code={"mine": "2"}, package_code={"mmrlhf.losses.dpo": "2"})
    record = {"fingerprint": "e" * 64, "code": {"own": {"mine": "1"}, "package": recipe.package_code}}
    assert reasons(recipe, record) == ["your code: mine"]
    record = {"fingerprint": "e" * 64, "code": {"own": {"mine": "2"}, "package": {"mmrlhf.losses.dpo": "1"}}}
    assert reasons(recipe, record) == ["code: losses.dpo"]


def test_changed_code_of_this_package_is_told_as_each_policy_treats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "copy" / "mmrlhf"
    package.mkdir(parents=True)
    for name in ("__init__", "errors", "processes"):
        (package / f"{name}.py").write_text("x = 1\n")
    monkeypatch.setattr(code, "_ROOT", tmp_path / "copy")
    _build(tmp_path, "sft")

    def said(policy: Any) -> list[tuple[bool, str]]:
        return [(item.reused, item.why) for item in _forecast(tmp_path, goal="sft", code=policy)]

    assert said("warn") == said("rebuild") == said("ignore") == [(True, ""), (True, "")]
    (package / "errors.py").write_text("x = 2\n")
    changed = "code has changed since: errors"
    assert said("warn") == [(True, changed), (True, changed)] and said("ignore") == [(True, ""), (True, "")]
    assert said("rebuild") == [(False, "code: errors"), (False, "input world will be built")]
    _build(tmp_path, "world", code="rebuild")
    assert said("rebuild") == [(True, ""), (False, "input world is another")]
    assert said("warn") == [(True, ""), (False, "input world is another")], "as the run itself does it"
    _build(tmp_path, "sft", code="rebuild")
    assert said("warn") == said("rebuild") == [(True, ""), (True, "")]


def test_what_a_crash_has_left_is_said(tmp_path: Path) -> None:
    nodes = {"bad": {"_target_": f"{FAKE}.failing", "kind": "bug"}}
    with pytest.raises(RuntimeError):
        _build(tmp_path, "bad", nodes)
    assert "goes on with what an earlier run has left" in _forecast(tmp_path, nodes, "bad")[0].why
    (begun,) = tmp_path.glob("store/bad/*.building/.begun.json")
    assert "other code" not in _forecast(tmp_path, nodes, "bad")[0].why
    record = json.loads(begun.read_text(encoding="utf-8"))
    record["code"]["package"]["mmrlhf.losses.dpo"] = "other"
    begun.write_text(json.dumps(record), encoding="utf-8")
    said = {code: _forecast(tmp_path, nodes, "bad", code=code)[0].why for code in ("warn", "ignore", "rebuild")}
    assert "goes on with what an earlier run has left, begun by other code: losses.dpo" in said["warn"]
    assert "starts anew what an earlier run has left, begun by other code: losses.dpo" in said["rebuild"]
    assert "goes on with" in said["ignore"] and "other code" not in said["ignore"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([90.0], "1 of 2 stages would be built: about 1 min 30 s\n"),
        ([90.0, None], "2 of 3 stages would be built: about 1 min 30 s, 1 of unknown time\n"),
        ([None, None], "2 of 3 stages would be built: 2 of unknown time\n"),
        ([], "0 of 1 stages would be built\n"),
    ],
)
def test_the_table_sums_up(seconds: list[float | None], said: str) -> None:
    console = Console(width=120, record=True)
    built = [Forecast(f"b{number}", False, "lr [1e-6] -> 1", each) for number, each in enumerate(seconds)]
    show_forecast([Forecast("a", True, "", 0.0), *built], console)
    text = console.export_text()
    assert text.count("lr [1e-6] -> 1") == len(seconds) and said in text
