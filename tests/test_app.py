"""The app: mistakes are found before anything runs and shown as one screen, runs leave their outcome, sweeps go on."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from stand_ins.commands import USUAL, give, start

from mmrlhf.__main__ import main
from mmrlhf.app import CONF, run_chain
from mmrlhf.errors import ConfigError, DataError


def _compose(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", [*USUAL, *overrides])


def _run(folder: Path, *overrides: str) -> Any:
    return run_chain(_compose(*overrides), folder)


def test_a_run_leaves_its_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = _run(tmp_path / "run", "method.w=0.7")
    assert [artifact.stage for artifact in artifacts] == ["fake_world", "fake_train"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["fake_train"] == {"letters": 3, "rate": 0.7, "world": 1}
    assert (tmp_path / "run" / "artifacts" / "fake_train").resolve() == artifacts[1].folder
    assert set(json.loads((tmp_path / "run" / "versions.json").read_text())) == {"command", "versions", "git"}
    assert "rate: 0.7" in (tmp_path / "run" / "resolved.yaml").read_text()
    screen = capsys.readouterr().out
    assert "fake_train" in screen and "results" in screen
    assert all(artifact.reused for artifact in _run(tmp_path / "again", "method.w=0.7"))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("method.w=-1", ConfigError, "w cannot be this"),
        ("stages.fake_world.size=-1", DataError, "negative size"),
        ("+stages.fake_train.rte=1", ConfigError, "did you mean stages.fake_train.rate"),
        ("stage=fake_trian", ConfigError, "did you mean fake_train"),
        ("stages.fake_world.size=???", ConfigError, "add stages.fake_world.size=..."),
        ("+stages.fake_train.policy=${benchmark.root}", ConfigError, "add benchmark.root=..."),
        ("+stages.fake_world.root=${nothing.there}", ConfigError, "not there"),
        ("inputs=null", ConfigError, "replaced as a whole\n  where: inputs"),
        ("runtime=3", ConfigError, "replaced as a whole\n  where: runtime"),
        ("runtime.callbacks=[1]", ConfigError, "replaced as a whole\n  where: runtime.callbacks"),
        ("stages.fake_train=3", ConfigError, "replaced as a whole\n  where: stages.fake_train"),
        ("rounds.stages=null", ConfigError, "replaced as a whole\n  where: rounds.stages"),
        ("rounds.number=abc", ConfigError, "not a number of rounds"),
        ("rounds.number=-1", ConfigError, "not a number of rounds"),
        ("distributed=reward", ConfigError, "not a list of stages"),
        ("distributed=null", ConfigError, "not a list of stages"),
        ("distributed=[rewrad]", ConfigError, "did you mean reward"),
        ("dry=no", ConfigError, "true or false"),
        ("plan=1", ConfigError, "true or false"),
        ("dry=null", ConfigError, "true or false"),
        ("paths.artifacts=null", ConfigError, "not a folder\n  where: paths.artifacts"),
        ("paths.artifacts=[a]", ConfigError, "not a folder"),
        ("paths.artifacts=''", ConfigError, "not a folder"),
        ("paths.artifacts=s3://bucket/store", ConfigError, "cannot write to an address"),
        (f"paths.artifacts={__file__}", ConfigError, "a file stands where"),
        (f"paths.artifacts={__file__}/store", ConfigError, "a file stands where"),
        ("method.w=inf", ConfigError, "finite number"),
        (
            "+stages.fake_train.policy={a: [1, nan]}",
            ConfigError,
            "no finite number\n  where: stages.fake_train.policy.a.1",
        ),
        ("trainer.devices=none", ConfigError, "trainer.devices"),
        ("logger.wandb=maybe", ConfigError, "logger.wandb"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tmp_path: Path, own_store: Path, override: str, kind: type[Exception], message: str
) -> None:
    asks_the_objective = ["+stages.fake_train.policy=${if_needed:needs_margin,org/model}"]
    with pytest.raises(kind, match=message):
        _run(tmp_path, override, *(asks_the_objective if override.startswith("method") else []))
    assert not own_store.exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("paths.outputs=s3://bucket/runs", "cannot write to an address"),
        ("paths.outputs=null", "not a folder"),
        ("paths.outputs=taken/runs", "a file stands where a folder is wanted"),
        ("hydra.run.dir=taken", "cannot be made here"),
        ("hydra.run.dir=taken/run", "cannot be made here"),
    ],
)
def test_a_run_whose_folder_cannot_be_made_is_one_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert give(*USUAL, word) == 2
    screen = capsys.readouterr().err
    assert message in screen and "Traceback" not in screen and [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(("kind", "code"), [("ctrl-c", 130), ("preempted", 143)])
def test_ctrl_c_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str, code: int
) -> None:
    """Outside of training, which saves and ends with 143."""
    monkeypatch.chdir(tmp_path)
    stage = f"+stages.fake_stop={{_target_: stand_ins.fake_stages.failing, kind: {kind}}}"
    assert give(*USUAL[:3], "stage=fake_stop", stage) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert ("stopped by Ctrl-C; the same command goes on" in err) is (code == 130)


def test_a_sweep_of_ones_own_configs_that_only_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "scale").mkdir(parents=True)
    (tmp_path / "own" / "scale" / "mine.yaml").write_text("# @package _global_\nseed: 5\nname: looked\n")
    words = [
        "--config-dir",
        "own",
        "-m",
        *USUAL,
        "scale=mine",
        "dry=true",
        "method.w=0.25,0.5",
        "hydra.sweep.dir=sweep",
    ]
    monkeypatch.setattr("sys.argv", ["mmrlhf", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    GlobalHydra.instance().clear()
    main()
    screen = capsys.readouterr().out
    assert screen.count("2 of 2 stages would be built: 2 of unknown time") == 2 and "failed" not in screen
    assert "name: looked" in (tmp_path / "sweep" / "1" / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("depth", "method.w"),  # the stage's own, before that of the objects in it
        ("wide", "method.k"),  # of the one object that has it
        ("far", "far"),  # of none
        ("things.a.depth", "stages.fake_late.things.a.depth"),
    ],
)
def test_what_a_stage_refuses_while_it_runs_is_named_as_it_is_typed(tmp_path: Path, name: str, key: str) -> None:
    thing = "_target_: stand_ins.fake_stages.Thing, depth: 1"
    stage = f"{{_target_: stand_ins.fake_stages.refusing, name: {name}, depth: ${{method.w}}, things: "
    stage += f"{{a: {{{thing}}}, b: {{{thing}, wide: ${{method.k}}}}}}}}"
    with pytest.raises(ConfigError, match="does not fit the data") as caught:
        _run(tmp_path, f"+stages.fake_late={stage}", "stage=fake_late")
    assert caught.value.where == key


def test_own_data_must_exist(tmp_path: Path, own_store: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        _run(tmp_path, "+stages.fake_world.root=${inputs.raw}", "data.root=no_such_folder")
    with pytest.raises(ConfigError, match="does not exist"):
        _run(tmp_path, "+stages.fake_train.policy=${inputs.base}", "model.path=./no_such_folder")
    assert not own_store.exists()


def test_a_hub_id_is_asked_for_first_and_only_if_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mmrlhf.models.hub.check_checkpoint", asked.append)
    _run(tmp_path, "model.path=org/model")
    assert asked == []
    _run(tmp_path, "+stages.fake_train.policy=${inputs.base}", "model.path=org/model")
    assert asked == ["org/model"]


def test_a_mistake_is_one_screen(tmp_path: Path) -> None:
    screen = start(tmp_path, *USUAL[:4], expected=2)
    assert "there is no such stage" in screen and "Traceback" not in screen
    assert "given" in screen and "fake_train" in screen


@pytest.mark.parametrize("words", [["method.ww=1"], ["-m", "method.ww=1,2"]])
def test_a_misspelt_override_is_one_screen(tmp_path: Path, words: list[str]) -> None:
    screen = start(tmp_path, *words, expected=2)
    assert "did you mean method.w" in screen and "Traceback" not in screen and "HYDRA" not in screen
    assert len(screen.splitlines()) < 12


def test_a_bug_is_a_traceback_without_hydras_frames(tmp_path: Path) -> None:
    bug = "+stages.fake_bug={_target_: stand_ins.fake_stages.failing, kind: bug}"
    screen = start(tmp_path, *USUAL[:3], "stage=fake_bug", bug, "hydra.run.dir=run", expected=1)
    assert "Traceback" in screen and "run_job" not in screen
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()


def test_help_shows_commands_and_groups(tmp_path: Path) -> None:
    screen = start(tmp_path, "--help", expected=0)
    for text in (
        "experiment=mmdpo_llava",
        "trainer: auto, cpu, ddp, fsdp, gpu",
        "scale: default, tiny",
        "-m method.w=",
    ):
        assert text in screen


def test_a_sweep_shares_stages_goes_on_after_a_failure_and_collects(tmp_path: Path, own_store: Path) -> None:
    # method.w=-1 fails: the objective says whether it needs a policy here, and refuses to be made
    arguments = [
        "-m",
        *USUAL,
        "+sweep_metrics.rate={path: fake_train/rate, better: low}",
        "method.w=0.5,-1",
        "method.k=0.25,0.5",
    ]
    arguments.append("+stages.fake_train.policy=${if_needed:needs_margin,org/model}")
    screen = start(tmp_path, *arguments, "hydra.sweep.dir=sweep", expected=1)
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert [row["method.w"] for row in rows] == ["0.5", "0.5", "-1", "-1"]
    assert [row["fake_train/rate"] for row in rows] == ["0.5", "0.5", "", ""]
    assert all(row["failure"] for row in rows[2:]) and not any(row["failure"] for row in rows[:2])
    assert "2 of 4 jobs failed" in screen and "the same command runs the failed jobs again" in screen
    assert (tmp_path / "sweep" / "sweep.html").exists() and (tmp_path / "sweep" / "rate.svg").exists()
    assert len(list((own_store / "fake_world").glob("*/artifact.json"))) == 1, "built once for all jobs"


def test_a_mistake_behind_an_interpolation_is_shown_as_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="k cannot be this") as caught:
        _run(tmp_path, "method.k=-1", "+stages.fake_train.policy=${if_needed:needs_margin,org/model}")
    assert caught.value.given is not None


@pytest.mark.slow  # starts torchrun
def test_several_devices_are_real_processes(tmp_path: Path, own_store: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "distributed=[fake_train]"]
    start(tmp_path, *USUAL, *two, "hydra.run.dir=run", expected=0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["fake_train"]["world"] == 2
    folder = (tmp_path / "run" / "artifacts" / "fake_train").resolve()
    assert {file.name for file in folder.glob("rank*")} == {"rank0", "rank1"}
    assert folder.is_relative_to(own_store)


def test_passwords_are_in_nothing_that_a_run_writes(tmp_path: Path) -> None:
    """Folder, log, screen and store: the address is used with its password and shown without."""
    address = "https://me:s3cret@nowhere.invalid/a"
    bug = f"+stages.fake_bug={{_target_: stand_ins.fake_stages.failing, kind: '{address}'}}"
    screen = start(tmp_path, *USUAL[:3], "stage=fake_bug", bug, "hydra.run.dir=run", expected=1)
    texts = [screen, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(texts) > 4 and not [text for text in texts if "s3cret" in text]


def test_runs_have_folders_of_their_own_and_say_their_command(tmp_path: Path) -> None:
    words = [*USUAL, "hydra.run.dir=${paths.outputs}/same-second-${unique:}"]
    start(tmp_path, *words, expected=0)
    start(tmp_path, *words, expected=0)
    runs = sorted((tmp_path / "outputs").iterdir())
    assert len(runs) == 2
    for run in runs:
        said = json.loads((run / "versions.json").read_text())["command"]
        assert shlex.split(said)[2:] == words, "what was typed, quoted for a shell"


def test_dry_says_what_would_happen_and_leaves_the_store_alone(tmp_path: Path, own_store: Path) -> None:
    screen = start(tmp_path, *USUAL, "dry=true", expected=0)
    assert "never built here" in screen and "input fake_world will be built" in screen and not own_store.exists()
