"""Summaries are read back as they were written, and what does not fit is named by file and key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import report_data

from mmrlhf.errors import DataError
from mmrlhf.reporting.inputs import read_stage
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import EvaluateSummary, ReportSummary, Round
from mmrlhf.summaries.kinds import KINDS, kind_of
from mmrlhf.summaries.left_out import LeftOutFor, Quarantined
from mmrlhf.summaries.rankings import Estimate, MarginStatistics, Ranking
from mmrlhf.summaries.scores import AnnotationsSummary, ScoreSummary
from mmrlhf.summaries.summary import METRICS_FILE, Summary, field_types

NOTHING = Ranking(0, {}, {}, {}, None)
SUMMARY = AnnotationsSummary({"overall": 1.0}, NOTHING, dataclasses.replace(NOTHING, queries=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wieghts": {}}, "unknown key(.|\n)*made/metrics.json(.|\n)*given: wieghts"),
        ({"weights": None}, "another type(.|\n)*metrics.json: weights"),
        ({"weights": {"overall": "much"}}, "another type(.|\n)*metrics.json: weights/overall"),
        ({"weights": {"overall": True}}, "another type(.|\n)*bool"),
        ({"heldout": {}}, "lacks a key(.|\n)*metrics.json: heldout(.|\n)*given: queries, accuracy"),
    ],
)
def test_what_does_not_fit_is_named_by_file_and_key(change: dict[str, Any], message: str) -> None:
    content = {**SUMMARY.to_json(), **change}
    with pytest.raises(DataError, match=message):
        AnnotationsSummary.from_json(content, where=Path("made/metrics.json"))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(AnnotationsSummary)])
def test_a_key_that_was_renamed_is_an_error(name: str) -> None:
    content = SUMMARY.to_json()
    content[f"{name}_of_before"] = content.pop(name)
    with pytest.raises(DataError, match=f"given: {name}\n"):
        AnnotationsSummary.from_json(content, where="metrics.json")


@cache
def any_value(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    parts = get_args(kind)
    if type(None) in parts:
        return st.none() | any_value(next(part for part in parts if part is not type(None)))
    if get_origin(kind) is tuple:
        return st.tuples(*map(any_value, parts))
    if get_origin(kind) is not None and len(parts) == 2:
        return st.dictionaries(st.text(max_size=4), any_value(parts[1]), max_size=2)
    if parts:
        return st.lists(any_value(parts[0]), max_size=2)
    if issubclass(kind, Summary):
        return st.builds(kind, **{name: any_value(own) for name, own in field_types(kind).items()})
    plain = {int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), str: st.text(max_size=4)}
    return plain[kind]


@pytest.mark.parametrize("kind", sorted(set(KINDS.values()), key=lambda kind: kind.__name__))
@settings(max_examples=25)
@given(data=st.data())
def test_any_summary_is_read_back_as_it_was_written(kind: type[Summary], data: st.DataObject) -> None:
    summary = data.draw(any_value(kind))
    assert kind.from_json(json.loads(json.dumps(summary.to_json())), where="") == summary


def test_what_is_optional_is_absent_and_every_other_none_is_null() -> None:
    numbers = ReportSummary(quality_gain=Estimate(0.1, None, None), kl_after=0.0)
    assert numbers.to_json() == {"quality_gain": 0.1, "kl_after": 0.0}
    whole = ReportSummary(quality_gain=Estimate(0.1, 0.0, 0.2), rounds=[Round(0, None, None, None, None)])
    empty = {"round": 0, "quality": None, "reward": None, "kl": None, "length": None}
    assert whole.to_json() == {
        "quality_gain": 0.1,
        "quality_gain_low": 0.0,
        "quality_gain_high": 0.2,
        "rounds": [empty],
    }
    with pytest.raises(DataError, match="unknown key(.|\n)*kl_after_low"):
        ReportSummary.from_json({"kl_after": 0.0, "kl_after_low": 0.0}, where="")


def is_number(kind: Any, path: list[str]) -> bool:
    """Whether keys one behind the other lead to a number of a summary."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    if type(None) in get_args(kind):
        return is_number(parts[0], path)
    if not path:
        return kind in (int, float)
    if isinstance(kind, type) and issubclass(kind, Summary):
        return path[0] in field_types(kind) and is_number(field_types(kind)[path[0]], path[1:])
    return len(parts) == 2 and is_number(parts[1], path[1:])


def kind_of_stage(project: Path, stage: str) -> type[Summary]:
    settings = yaml.safe_load((project / "conf" / "stages" / f"{stage}.yaml").read_text())
    defaults = [item for item in settings.get("defaults", []) if isinstance(item, str) and item != "_self_"]
    target = settings.get("_target_")
    found = kind_of(target) if target else kind_of_stage(project, defaults[0])
    assert found is not None, f"{stage} writes no summary"
    return found


def test_every_number_of_a_sweeps_table_is_one_that_its_stage_writes(project: Path) -> None:
    settings = yaml.safe_load((project / "conf" / "paths" / "default.yaml").read_text())
    found = {name: metric["path"].split("/") for name, metric in settings["sweep_metrics"].items()}
    assert len(found) >= 5
    assert [name for name, (stage, *path) in found.items() if not is_number(kind_of_stage(project, stage), path)] == []
    assert not is_number(EvaluateSummary, ["quality", "maen"]) and not is_number(EvaluateSummary, ["quality"])


def test_every_kind_is_of_a_stage_and_every_stage_that_leaves_numbers_has_one(project: Path) -> None:
    modules = {name: import_module(f"mmrlhf.stages.{name}") for name in KINDS}
    assert all(kind_of(f"mmrlhf.stages.{name}.run") is KINDS[name] and hasattr(modules[name], "run") for name in KINDS)
    for path in (project / "mmrlhf" / "stages").glob("*.py"):
        promises = getattr(import_module(f"mmrlhf.stages.{path.stem}"), "PROMISES", ())
        # of the world's numbers no report reads any: they are counts of what was drawn
        assert path.stem in (*KINDS, "world") or METRICS_FILE not in promises, path.stem
    assert kind_of("someone.stages.score.run") is None and kind_of("mmrlhf.stages.mix.run") is None


def artefact(folder: Path, target: str, content: Mapping[str, Any]) -> Path:
    folder.mkdir()
    report_data.record(folder, folder.name, 1.0, {"_target_": target} if target else {}, dict(content))
    return folder


def test_what_made_a_folder_decides_what_its_summary_is_read_as(tmp_path: Path) -> None:
    mixed = artefact(tmp_path / "mixed", "mmrlhf.stages.mix.run", {"groups": 3, "sets": {}, "digest": "d"})
    stage = read_stage("pack", mixed, PackSummary)
    assert stage is not None and stage.summary is None and stage.content["groups"] == 3
    given = SUMMARY.to_json()
    for name, target in (("a", "mmrlhf.stages.annotations.run"), ("b", "")):
        stage = read_stage("score", artefact(tmp_path / name, target, given), ScoreSummary, AnnotationsSummary)
        assert stage is not None and stage.summary == SUMMARY
    broken = artefact(tmp_path / "c", "mmrlhf.stages.pack.run", {"groups": 3})
    with pytest.raises(DataError, match=r"lacks a key(.|\n)*artifact.json"):
        read_stage("pack", broken, PackSummary)


def test_numbers_by_position_are_what_they_are_called() -> None:
    assert Quarantined(1, 9, 2, [LeftOutFor("why", 1, ["k"])]).to_json() == {
        "queries": 1, "of": 9, "at_most": 2, "reasons": [{"reason": "why", "queries": 1, "keys": ["k"]}],
    }  # fmt: skip
    assert MarginStatistics(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0).to_json()["share_negative"] == 7.0
