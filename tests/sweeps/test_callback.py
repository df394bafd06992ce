"""The end of a sweep: one row per job whatever became of it, the map shows what the table says, failures are listed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from stand_ins.sweep_jobs import make_job

from mmrlhf import app
from mmrlhf.errors import ConfigError
from mmrlhf.sweeps.callback import SweepReport, make_metrics, map_table, results_table, show_sweep
from mmrlhf.sweeps.results import read_sweep

METRICS = {"quality": {"path": "evaluate/quality/mean", "better": "high"}, "absent": {"path": "no/where"}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A finished sweep over two settings, of which the fourth job failed and the fifth was killed."""
    for number, (w, k) in enumerate([(0.1, 9), (0.1, 10), (1.0, 9), (1.0, 10), (2.0, 9)]):
        overrides = {"method.w": w, "method.k": k, "scale": "tiny"}
        make_job(tmp_path / str(number), overrides, w + k if number < 3 else None)
    (tmp_path / "3" / "failure.json").write_text(json.dumps({"kind": "DataError", "message": "a <bad> shard\nwhere"}))
    return tmp_path


def _screen(folder: Path, width: int = 200) -> str:
    console = Console(width=width, height=200)
    with console.capture() as captured:
        show_sweep(read_sweep(folder, make_metrics(METRICS)), console)
    return captured.get()


def test_every_job_is_a_row(sweep: Path) -> None:
    _screen(sweep)
    rows = list(csv.DictReader((sweep / "sweep.csv").read_text().splitlines()))
    assert [row["job"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[2]["evaluate/quality/mean"] == "10.0" and rows[3]["failure"].startswith("a <bad> shard")


def test_the_screen_says_what_was_best_and_what_failed(sweep: Path) -> None:
    screen = _screen(sweep)
    assert "absent" not in screen and "best     w=0.1 k=10: quality 10.100 [10.000, 10.300]" in screen
    assert "2 of 5 jobs failed" in screen and "3: method.w=1.0 method.k=10\n     a <bad> shard\n" in screen
    assert screen.count("method.w") == 2, "only for the failed jobs"
    assert str(sweep / "sweep.html") in screen and str(sweep / "3" / "run.log") in screen


def test_the_tables_fit_a_narrow_terminal(sweep: Path) -> None:
    tables = _screen(sweep, width=60).split("best ")[0]
    assert max(map(len, tables.splitlines())) <= 60 and "…" not in tables


def test_the_map_shows_the_numbers(sweep: Path) -> None:
    found = read_sweep(sweep, make_metrics(METRICS))
    table = map_table(found, found.metrics[0])
    assert table is not None and [str(column.header) for column in table.columns] == ["", "9", "10"]
    cells = [[str(cell).partition(" ")[0] for cell in column.cells] for column in table.columns]
    assert cells == [["0.1", "1.0", "2.0"], ["9.100", "10.000", "-"], ["10.100", "-", "-"]]
    assert results_table(found).row_count == 5


@pytest.mark.parametrize("word", ["dry", "plan"])
def test_jobs_that_only_look_have_not_failed(sweep: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    """They leave no numbers; one that could not even look has failed."""
    config = OmegaConf.create({word: True, "hydra": {"sweep": {"dir": str(sweep)}}})
    for file in sweep.glob("*/metrics.json"):
        file.unlink()
    with pytest.raises(SystemExit) as stop:
        SweepReport(METRICS).on_multirun_end(config)
    screen = capsys.readouterr().out
    assert stop.value.code == 1 and "1 of 5 jobs failed" in screen and "a <bad> shard" in screen
    (sweep / "3" / "failure.json").unlink()
    SweepReport(METRICS).on_multirun_end(config)
    assert "failed" not in capsys.readouterr().out and not (sweep / "sweep.csv").exists()


def test_failed_jobs_end_the_sweep_with_an_error(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    with pytest.raises(SystemExit) as stop:
        SweepReport(METRICS).on_multirun_end(config)
    assert stop.value.code == 1
    for number in (3, 4):
        (sweep / str(number) / "failure.json").unlink(missing_ok=True)
        (sweep / str(number) / "metrics.json").write_text('{"pack": {"groups": 1}}')
    SweepReport(METRICS).on_multirun_end(config)
    assert "sweep.csv" in capsys.readouterr().out


def test_a_sweep_started_as_a_group_is_refused(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "nowhere"}}})
    SweepReport(METRICS).on_multirun_start(config)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        SweepReport(METRICS).on_multirun_start(config)
    assert stop.value.code == 2 and "trainer.devices=N" in capsys.readouterr().err


@pytest.mark.parametrize("item", ["evaluate/quality", {"better": "high"}, {"path": "a", "worse": "low"}])
def test_bad_metrics_are_refused_before_the_first_job(item: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="sweep_metrics.mine"):
        make_metrics({"mine": item})  # type: ignore[dict-item]
    with pytest.raises(SystemExit):
        SweepReport({"mine": item}).on_multirun_start(OmegaConf.create({}))  # type: ignore[dict-item]
    assert "not a metric" in capsys.readouterr().err


def test_a_sweep_whose_launcher_gave_up_is_collected(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})

    def lose() -> None:
        SweepReport(METRICS).on_multirun_start(config)
        raise OSError("a worker was killed")

    monkeypatch.setattr("sys.argv", ["run.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(app, "_job", lose)
    with pytest.raises(SystemExit) as stop:
        app.main()
    said = capsys.readouterr()
    assert stop.value.code == 1 and "a worker was killed" in said.err and "2 of 5 jobs failed" in said.out
    monkeypatch.setattr(app, "_job", lambda: int("no sweep"))
    with pytest.raises(ValueError, match="no sweep"):
        app.main()
