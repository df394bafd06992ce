"""Laws of a sweep's numbers: seeds repeat a point, intervals come from them, failed jobs stay in sight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from stand_ins.sweep_jobs import make_job

from mmrlhf.errors import ConfigError
from mmrlhf.sweeps.results import Job, Metric, estimate, flatten, is_seed, read_sweep, searched, varying

QUALITY = Metric("quality", "evaluate/quality/mean")
KL = Metric("KL", "evaluate/kl/mean", "low")


@pytest.fixture
def seeded(tmp_path: Path) -> Path:
    """Two points of three seeds each, of which one job failed, one was killed and one was there already."""
    number = 0
    for k, values in ((10, [0.4, 0.5, 0.6]), (9, [0.9, None, None])):
        for seed, quality in enumerate(values):
            make_job(tmp_path / str(number), {"method.k": k, "scale": "tiny", "seed": seed}, quality, reused=seed == 2)
            number += 1
    (tmp_path / "4" / "failure.json").write_text(json.dumps({"kind": "DataError", "message": "bad shard\n  where: 7"}))
    (tmp_path / ".submitit").mkdir()
    return tmp_path


def test_seeds_are_averaged_with_an_interval(seeded: Path) -> None:
    """Student's t over three seeds: .5 +- 4.303 * .1 / sqrt(3) = .5 +- .248."""
    sweep = read_sweep(seeded, [QUALITY, KL])
    assert sweep.settings == ("method.k",) and sweep.labels == ["k"] and sweep.metrics == (QUALITY,)
    assert [point.values for point in sweep.points] == [("9",), ("10",)], "by size, not as text"
    found = sweep.points[1].estimates["quality"]
    assert found.num_jobs == 3 and found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.2516, abs=1e-4), pytest.approx(0.7484, abs=1e-4))


def test_one_seed_keeps_the_interval_over_queries(seeded: Path) -> None:
    found = read_sweep(seeded, [QUALITY]).points[0].estimates["quality"]
    assert (found.mean, found.low, found.high, found.num_jobs) == pytest.approx((0.9, 0.8, 1.1, 1))


def test_failed_and_killed_jobs_are_named(seeded: Path) -> None:
    sweep = read_sweep(seeded, [QUALITY])
    assert [(job.folder.name, job.first_line.split(":")[0]) for job in sweep.failed] == [
        ("4", "bad shard"),
        ("5", "it left no results"),
    ]
    assert [job.reused for job in sweep.jobs] == [False, False, True, False, False, False]


def test_a_job_that_was_killed_while_its_words_were_written_is_named_with_the_others(seeded: Path) -> None:
    (seeded / "5" / ".hydra" / "overrides.yaml").write_text("")
    assert [job.folder.name for job in read_sweep(seeded, [QUALITY]).failed] == ["4", "5"]


def test_the_best_point_is_the_best_mean(seeded: Path, tmp_path: Path) -> None:
    sweep = read_sweep(seeded, [QUALITY])
    best = sweep.best(QUALITY)
    assert best is not None and sweep.describe(best) == "k=9"
    worst = sweep.best(Metric("quality", QUALITY.path, "low"))
    assert worst is not None and sweep.describe(worst) == "k=10"
    assert sweep.best(KL) is None


def test_settings_of_one_name_keep_their_whole_name(tmp_path: Path) -> None:
    for number, value in enumerate((1, 2)):
        make_job(tmp_path / str(number), {"optim.mmdpo.lr": value, "optim.sft.lr": value, "pairs": value}, 0.5)
    sweep = read_sweep(tmp_path, [QUALITY])
    assert sweep.labels == ["optim.mmdpo.lr", "optim.sft.lr", "pairs"] and sweep.axes() is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_the_interval_is_scipys(values: list[float]) -> None:
    """One-sample t: the same interval as scipy.stats.ttest_1samp gives; scaling all values scales it."""
    jobs = [Job(Path("0"), {}, {"a/b": value}) for value in values]
    found = estimate(jobs, Metric("b", "a/b"))
    assert found is not None and found.low is not None and found.high is not None
    if np.ptp(values) > 1e-3:
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.low <= found.mean + 1e-9 and found.mean <= found.high + 1e-9


def test_numbers_that_are_none_do_not_count() -> None:
    jobs = [Job(Path("0"), {}, {"a": float("nan")}), Job(Path("1"), {}, {"a": 2.0, "a_low": 1.0, "a_high": 4.0})]
    found = estimate(jobs, Metric("a", "a"))
    assert found is not None and (found.mean, found.low, found.high, found.num_jobs) == (2.0, 1.0, 4.0, 1)
    assert estimate(jobs[:1], Metric("a", "a")) is None


def test_only_numbers_and_only_what_varies() -> None:
    assert dict(flatten({"a": {"b": 1, "c": "text", "d": False}})) == {"a/b": 1.0}
    jobs = [Job(Path("0"), {"a": "1", "b": "2"}), Job(Path("1"), {"a": "1", "b": "3", "c": "4"})]
    assert varying(jobs) == ["b", "c"]
    assert is_seed("seed") and is_seed("stages.mmdpo.schedule.seed") and not is_seed("method.w")


def test_a_metric_has_a_direction() -> None:
    with pytest.raises(ConfigError, match="high or low"):
        Metric("a", "a", "up")  # type: ignore[arg-type]


def test_a_search_goes_by_the_tables_first_number(tmp_path: Path) -> None:
    """Where the first configured number does not exist, table and search take the same one in its place."""
    make_job(tmp_path / "0", {"method.w": 1}, 0.25)
    metrics = [Metric("truth", "evaluate/truth/mean"), QUALITY, KL]
    sweep = read_sweep(tmp_path, metrics)
    assert sweep.metrics[0] == QUALITY
    assert searched(metrics, sweep.jobs[0].metrics, "maximize") == 0.25
    assert searched([KL, QUALITY], {KL.path: 0.5}, "minimize") == 0.5


def test_a_search_without_a_number_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match="mmdpo/steps") as caught:
        searched([QUALITY, KL], {"mmdpo/steps": 3.0, "score/groups": 2.0}, "maximize")
    assert "evaluate/quality/mean, evaluate/kl/mean" in str(caught.value) and "score/groups" in str(caught.value)


@pytest.mark.parametrize(("metric", "direction"), [(QUALITY, "minimize"), (KL, "maximize")])
def test_a_search_for_the_worst_point_is_refused(metric: Metric, direction: str) -> None:
    with pytest.raises(ConfigError, match="hydra.sweeper.direction"):
        searched([metric], {metric.path: 1.0}, direction)
