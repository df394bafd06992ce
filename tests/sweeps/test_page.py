"""The sweep page: a map or dots for every number, framed best, curves, answers, failed jobs, text that is escaped."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from stand_ins import report_data
from stand_ins.sweep_jobs import make_job

from mmrlhf.shards import remote
from mmrlhf.shards.writer import write_shards
from mmrlhf.sweeps.page import write_page
from mmrlhf.sweeps.results import Metric, read_sweep

QUALITY = Metric("quality", "evaluate/quality/mean")


def _page(folder: Path) -> str:
    write_page(read_sweep(folder, [QUALITY]), folder / "sweep.html")
    return (folder / "sweep.html").read_text()


def _grid(folder: Path, *, settings: tuple[str, str] = ("method.w", "method.k")) -> None:
    values = [(w, k) for w in (0.1, 0.5, 1.0) for k in (0.25, 0.5, 1.0)]
    for number, (w, k) in enumerate(values):
        make_job(folder / str(number), {settings[0]: w, settings[1]: k}, 0.7 + 0.1 * w - 0.05 * (k - 0.5) ** 2)


def test_two_settings_make_a_map(tmp_path: Path) -> None:
    _grid(tmp_path)
    page = _page(tmp_path)
    assert page.count("<svg") == 1 and "quality over w and k" in page and "w=1.0 k=0.5" in page
    assert "[0.700, 1.000]" in page, "the interval of the best cell"
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing is fetched from elsewhere"
    picture = ElementTree.parse(tmp_path / "quality.svg").getroot()
    assert picture.tag.endswith("svg") and "var(" not in (tmp_path / "quality.svg").read_text()


def test_other_numbers_of_settings_make_dots(tmp_path: Path) -> None:
    for number, method in enumerate(("dpo", "mmdpo", "ipo")):
        make_job(tmp_path / str(number), {"method": method}, 0.1 * number)
    page = _page(tmp_path)
    assert "method=ipo 0.200 (0.100 to 0.400)" in page and "<th>method</th>" in page


def test_failures_are_shown_and_escaped(tmp_path: Path) -> None:
    _grid(tmp_path)
    make_job(tmp_path / "9", {"method.w": 2.0, "method.k": 0.5}, None)
    (tmp_path / "9" / "failure.json").write_text(json.dumps({"message": "<script>bad</script>\nmore"}))
    page = _page(tmp_path)
    assert "1 failed" in page and "<script>bad" not in page and "&lt;script&gt;bad" in page


def test_curves_and_answers_of_every_point(tmp_path: Path) -> None:
    _grid(tmp_path)
    for number in range(9):
        artifacts = tmp_path / str(number) / "artifacts"
        (artifacts / "mmdpo").mkdir(parents=True)
        (artifacts / "mmdpo" / "curves.csv").write_text("step,name,value\n0,train/loss,0.7\n1,train/loss,0.6\n")
        (artifacts / "evaluate").mkdir()
        row = {"key": "q1", "generation": f"answer <{number}>", "quality": 0.5}
        (artifacts / "evaluate" / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = _page(tmp_path)
    assert "training curve: loss" in page and all(f"answer &lt;{number}&gt;" in page for number in range(9))


@pytest.mark.parametrize("kind", ["pack", "index", "mix", "folder", "address"])
def test_answers_stand_beside_their_queries_wherever_those_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv(remote.FOLDER_VARIABLE, str(tmp_path / "cache"))
    sweep = tmp_path / "sweep"
    _grid(sweep)
    groups = report_data.make_groups(3)
    shards = tmp_path / "own"
    write_shards(groups, shards)
    place = {"folder": str(shards), "address": shards.as_uri()}.get(kind, f"stage:{kind}")
    for number in range(9):
        evaluate = sweep / str(number) / "artifacts" / "evaluate"
        evaluate.mkdir(parents=True)
        (evaluate / "samples.jsonl").write_text(json.dumps({"key": groups[0].key, "generation": "an answer"}) + "\n")
        report_data.record(evaluate, "evaluate", 1.0, {"shards": place}, {})
        if place.startswith("stage:"):
            (evaluate.parent / kind).symlink_to(shards)
    page = _page(sweep)
    assert page.count("an answer") == 9 and "data:image/png" in page and "Describe what is drawn" in page


def test_queries_that_cannot_be_read_leave_the_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _grid(tmp_path)
    for number in range(9):
        artifacts = tmp_path / str(number) / "artifacts"
        (artifacts / "evaluate").mkdir(parents=True)
        (artifacts / "evaluate" / "samples.jsonl").write_text(json.dumps({"key": "q1", "generation": "said"}) + "\n")
        (artifacts / "pack").mkdir()
    assert _page(tmp_path).count("said") == 9 and "without their queries" in caplog.text


def test_one_job_and_nothing_known_is_a_page_too(tmp_path: Path) -> None:
    make_job(tmp_path / "0", {"method.w": 1}, None)
    assert "1 job at 1 point" in _page(tmp_path)


def test_quality_is_drawn_over_what_it_costs(tmp_path: Path) -> None:
    """One dot for each point that has both; a number that should be high is no cost."""
    _grid(tmp_path)
    for number in range(8):
        path = tmp_path / str(number) / "metrics.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"evaluate": {**found["evaluate"], "kl": {"mean": 0.1 * number}}}))
    metrics = [QUALITY, Metric("KL", "evaluate/kl/mean", "low"), Metric("again", QUALITY.path)]
    write_page(read_sweep(tmp_path, metrics), tmp_path / "sweep.html")
    page = (tmp_path / "sweep.html").read_text()
    assert "quality against KL" in page and "quality against again" not in page
    picture = page[page.index("quality against KL") :]
    assert picture[: picture.index("</svg>")].count("w=") == 8
