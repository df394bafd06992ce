"""The section on training: panels for what is logged, histograms that keep their mass, answers beside the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import report_data

from mmrlhf.reporting.inputs import read_stage
from mmrlhf.reporting.maps import histogram_map, spread
from mmrlhf.reporting.training_section import PANELS, SHOWN_QUERIES, training_section
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages.report import render
from mmrlhf.summaries.histogram_file import FILE_NAME, Histogram

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=32).filter(any)


@given(COUNTS, st.floats(-5, 5), st.floats(0.01, 5))
def test_a_histogram_keeps_its_mass_in_other_bins(counts: list[int], low: float, width: float) -> None:
    row = Histogram(1, "any", low, low + width, tuple(counts))
    shares = spread(row, np.linspace(low - 1, low + width + 1, 50))
    assert shares.sum() == pytest.approx(1.0) and (shares >= 0).all()
    own = spread(row, np.linspace(row.low, row.high, len(counts) + 1))
    np.testing.assert_allclose(own, np.array(counts) / sum(counts), atol=1e-9)


@pytest.mark.parametrize("steps", [[1], [1, 2], [5, 10, 400], list(range(1000))])
def test_any_steps_make_a_map(steps: list[int]) -> None:
    rows = [Histogram(step, "any", 0.1, 0.1 + 1e-7 * (step % 3), (1, 2, 3)) for step in steps]
    picture = histogram_map(rows, title="beta")
    assert picture.startswith("<svg") and "data:image/png" in picture and len(picture) < 60_000


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A stage with curves, histograms, and the answers of three validations to queries of the shards beside it."""
    groups = report_data.make_groups(6)
    write_shards(groups, tmp_path / "pack", max_groups_per_shard=64, max_megabytes=100)
    folder = tmp_path / "mmdpo"
    folder.mkdir()
    report_data.make_training(folder, "mmdpo", 3.0, {**report_data.FALLING, **report_data.DRIFTING}, 10)
    rows = [{"step": s, "name": "train/beta_histogram", "low": 0.1, "high": 0.15, "counts": [s, 2]} for s in (1, 2)]
    (folder / FILE_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answers").mkdir()
    for step in (4, 8, 12):
        lines = [
            {
                "key": group.key, "category": group.category, "prompt": group.prompt.question, "reference": "A <dog>.",
                "answer": f"At {step}.", "quality": 0.5, "quality_reference": 0.25, "words": 2.0,
            }
            for group in groups
        ]  # fmt: skip
        path = folder / "answers" / f"step-{step:08d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_histograms_and_answers_are_on_the_page(trained: Path) -> None:
    section = training_section([None, read_stage("mmdpo", trained)], Index.load(trained.parent / "pack"))
    (stage,) = section["stages"]
    assert "histogram over steps: beta" in stage["panels"][-1]
    assert len(stage["answers"]) == SHOWN_QUERIES and all(query["pictures"] for query in stage["answers"])
    query = stage["answers"][0]
    assert [answer["when"] for answer in query["answers"]] == ["reference", "step 4", "step 8", "step 12"]
    assert [answer["quality"] for answer in query["answers"]] == [0.25, 0.5, 0.5, 0.5]
    page = {
        name: {"missing": "", "command": ""}
        for name in ("policy", "reward", "judge", "beta", "samples", "data", "diagnosis")
    }
    run = {"times": None, "reproduce": "", "versions": {}, "stages": []}
    html = render("t", "s", {**page, "run": run, "training": section}, [])
    assert "A &lt;dog&gt;." in html and "At 12." in html and "true quality 0.25" in html and "reward -" not in html


def test_without_shards_answers_have_no_pictures(trained: Path) -> None:
    (stage,) = training_section([read_stage("mmdpo", trained)], None)["stages"]
    assert [query["pictures"] for query in stage["answers"]] == [[]] * SHOWN_QUERIES


def test_what_the_steps_log_has_a_panel() -> None:
    """The numbers that a user follows, as training logs them (callbacks/, methods/)."""
    shown = {f"{part}/{name}" for panel in PANELS for part in panel.parts for name in panel.names}
    steps = (
        "loss loss_preference loss_sft accuracy reward_margin beta beta_min beta_max margin kl_estimate "
        "logprob_chosen logprob_rejected length_chosen length_rejected gradient_norm"
    )
    assert {f"train/{name}" for name in steps.split()} <= shown
    rates = ("tokens_per_second", "groups_per_second", "useful_token_share", "peak_memory_gib")
    assert {f"throughput/{name}" for name in rates} <= shown
    assert {"heldout/quality", "heldout/quality_gain", "heldout/reward", "val/accuracy"} <= shown
