"""Agreement of annotators from the records themselves; the embedded world's known alpha comes out."""

from __future__ import annotations

import pytest

from mmrlhf.reporting.annotator_agreement import annotation_report, read_annotated
from mmrlhf.shapes.annotators import AnnotatorSettings
from mmrlhf.shapes.ranked_query import PreferenceSettings, draw_preference
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import PreferenceGroup, Response


def group(key: str, meta: dict) -> PreferenceGroup:
    return PreferenceGroup(key, "?", (Response("a"), Response("b")), meta=meta)


def world(sigma: float) -> list[PreferenceGroup]:
    settings = PreferenceSettings(annotators=AnnotatorSettings(sigma=sigma))
    rows = [drawn.row for drawn in draw_preference(400, 0, settings)]
    return [
        PreferenceGroup(row["id"], "?", tuple(Response(r["text"]) for r in row["responses"]), meta=row["meta"])
        for row in rows
    ]


def test_the_worlds_annotators_agree_as_much_as_they_were_made_to():
    """Krippendorff's alpha about .61 at sigma 1.2, .33 at 2.0 (the world's own arithmetic, on overall scores)."""
    found = annotation_report(world(1.2))
    assert found is not None and found.num_unreadable == 0
    overall = found.dimensions["overall"].humans
    assert overall is not None and overall.alpha is not None
    assert overall.num_raters == 3 and overall.alpha.mean == pytest.approx(0.61, abs=0.06)
    noisy = annotation_report(world(2.0))
    assert noisy is not None and noisy.dimensions["overall"].humans.alpha.mean == pytest.approx(0.33, abs=0.06)


def test_what_cannot_be_read_is_counted():
    good = group("a", {"annotations": {"overall": [[1, 5], [2, None]]}})
    more = group("b", {"annotations": {"overall": [[4, 2], [5, 2]]}, "model_annotations": {"overall": [[4, 1]]}})
    bad = [group("c", {"annotations": {"overall": [[1, 2, 3]]}}), group("d", {"annotations": {"overall": "five"}})]
    found = annotation_report([good, more, *bad, group("e", {}), group("f", {"annotations": 3})])
    assert found is not None and found.num_unreadable == 2
    assert found.dimensions["overall"].humans.num_items == 4
    assert found.dimensions["overall"].models.mean > 0
    assert annotation_report([group("e", {})]) is None and annotation_report([]) is None


@pytest.mark.parametrize("level", [10**400, -(10**400), float("inf"), 1e301, True, "5", [5]])
def test_a_level_that_is_no_number_is_counted(level):
    good = [group(key, {"annotations": {"overall": [[1, 5], [2, 5]]}}) for key in "ab"]
    found = annotation_report([*good, group("c", {"annotations": {"overall": [[1, level], [2, 5]]}})])
    assert found is not None and found.num_unreadable == 1
    assert found.dimensions == annotation_report(good).dimensions


def test_data_that_say_nothing_are_not_read_in_full(tmp_path):
    write_shards([group(f"g{number}", {}) for number in range(30)], tmp_path)
    assert read_annotated(Index.load(tmp_path), limit=25) == []
