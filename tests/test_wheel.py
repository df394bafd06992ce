"""The package as others install it: a wheel, unpacked outside the checkout, with its configs, command and types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

SOURCES = ("conf", "mmrlhf", "LICENSE", "README.md", "pyproject.toml", "setup.py")
OWN_STAGE = """
import os
from pathlib import Path
import mmrlhf
from mmrlhf.composition.config import CONF

def run(out: Path, *, word: str, runtime):
    names = ("TOKENIZERS_PARALLELISM", "WANDB_SILENT", "TRANSFORMERS_VERBOSITY")
    found = {name: os.environ.get(name, "") for name in names}
    return {**found, "word": word, "package": mmrlhf.__file__, "conf": str(CONF)}
"""
OWN_EXPERIMENT = """
# @package _global_
defaults:
  - override /callbacks: none
  - override /logger: none
name: mine
stage: mine
stages:
  mine: {_target_: own_stage.run, word: hello}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """The wheel, built without network from a copy of the sources, so that no old build gets into it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder that the wheel alone was installed into; torch and the like come from the environment."""
    target = tmp_path_factory.mktemp("site")
    _pip("install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel))
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: an experiment and a stage of their own."""
    folder = tmp_path / "folder"
    (folder / "my_conf" / "experiment").mkdir(parents=True)
    (folder / "my_conf" / "experiment" / "mine.yaml").write_text(OWN_EXPERIMENT)
    (folder / "own_stage.py").write_text(OWN_STAGE)
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _run(command: list[str], installed: Path, folder: Path) -> str:
    ours = ("TOKENIZERS_PARALLELISM", "WANDB_SILENT", "TRANSFORMERS_VERBOSITY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**kept, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_carries_what_the_checkout_has(wheel: Path, project: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {f"mmrlhf/conf/{file.relative_to(project / 'conf')}" for file in (project / "conf").rglob("*.yaml")}
    files |= {str(file.relative_to(project)) for file in (project / "mmrlhf").rglob("*.py")}
    files |= {str(file.relative_to(project)) for file in (project / "mmrlhf").rglob("templates/*")}
    assert len(files) > 300 and not files - names
    assert "mmrlhf/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmrlhf"}, "nothing else becomes a package"


@pytest.mark.parametrize("way", [["bin/mmrlhf"], pytest.param(["-m", "mmrlhf"], marks=pytest.mark.slow)])
def test_an_experiment_of_ones_own_runs_outside_the_checkout(way: list[str], installed: Path, folder: Path) -> None:
    command = [str(installed / way[0])] if len(way) == 1 else way
    _run([*command, "--config-dir", "my_conf", "experiment=mine", "hydra.run.dir=run"], installed, folder)
    found = json.loads((folder / "run" / "metrics.json").read_text())["mine"]
    assert found["word"] == "hello"
    assert found["package"] == str(installed / "mmrlhf" / "__init__.py")
    assert found["conf"] == str(installed / "mmrlhf" / "conf")
    assert found["TOKENIZERS_PARALLELISM"] == "false" and found["WANDB_SILENT"] == "true"
    assert found["TRANSFORMERS_VERBOSITY"] == "error"
    assert json.loads((folder / "run" / "versions.json").read_text())["git"]["commit"] is None


def test_help_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    assert "experiment: best_of_n, collect, dpo" in _run(["-m", "mmrlhf", "--help"], installed, tmp_path)


@pytest.mark.slow
def test_settings_need_no_checkout(installed: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(_run(["-m", "mmrlhf", "scale=tiny", "--cfg", "job"], installed, tmp_path))
    assert settings["scale"]["max_steps"] == 2 and len(settings["stages"]) > 20


@pytest.mark.slow  # the whole chain, in the smallest form
def test_the_chain_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    _run([str(installed / "bin" / "mmrlhf"), "scale=tiny", "logger=none", "hydra.run.dir=run"], installed, tmp_path)
    assert "evaluate" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (tmp_path / "run" / "artifacts" / "report" / "report.html").is_file()


@pytest.mark.slow  # starts torchrun
def test_two_processes_find_the_package(installed: Path, folder: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "distributed=[mine]"]
    own = ["--config-dir", "my_conf", "experiment=mine", "hydra.run.dir=run"]
    _run(["-m", "mmrlhf", *own, *two], installed, folder)
    found = json.loads((folder / "run" / "metrics.json").read_text())["mine"]
    assert found["package"] == str(installed / "mmrlhf" / "__init__.py")
