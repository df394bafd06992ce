"""Jobs at once never see one GPU twice, and a sweep that cannot give each its own is refused before the first job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmrlhf.chain import shares
from mmrlhf.chain.shares import cut_shares, job_shares, take_share, visible_gpus
from mmrlhf.errors import ConfigError
from mmrlhf.sweeps.callback import SweepReport

JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no share yet, and gives it back."""
    monkeypatch.setattr(shares, "_held", [])
    monkeypatch.setenv(shares.VISIBLE, "0,1,2,3")
    yield
    for lock in shares._held:
        lock.release()


@given(num_jobs=st.integers(2, 6), devices=st.integers(1, 4), visible=st.integers(0, 24))
def test_shares_are_disjoint_and_large_enough_or_refused(num_jobs: int, devices: int, visible: int) -> None:
    names = [f"GPU-{number}" for number in range(visible)]
    if 0 < visible < num_jobs * devices:
        with pytest.raises(ConfigError, match="fewer GPUs"):
            cut_shares({"devices": devices}, num_jobs, names)
        return
    found = cut_shares({"devices": devices}, num_jobs, names)
    given_out = [name for share in found for name in share]
    assert len(found) == (num_jobs if visible else 0) and len(set(given_out)) == len(given_out)
    assert set(given_out) <= set(names) and all(len(share) >= devices for share in found)


@pytest.mark.parametrize(
    ("devices", "fits"), [("auto", True), (-1, True), ([0, 1], True), ("0,1", True), ([2], False), ("0,3", False)]
)
def test_devices_by_name_count_inside_the_share(devices: object, fits: bool) -> None:
    visible = ["4", "5", "6", "7"]
    if fits:
        assert cut_shares({"devices": devices}, 2, visible) == [["4", "5"], ["6", "7"]]
    else:
        with pytest.raises(ConfigError, match="fewer GPUs"):
            cut_shares({"devices": devices}, 2, visible)


def test_the_cpu_and_other_launchers_have_nothing_to_share() -> None:
    env = {shares.VISIBLE: "2, 3"}
    assert visible_gpus("gpu", env) == visible_gpus("auto", env) == ["2", "3"] and visible_gpus("cpu", env) == []
    assert visible_gpus("auto", {shares.VISIBLE: ""}) == []
    assert job_shares({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, {"devices": 9}) == []
    assert cut_shares({"devices": 4}, 1, ["0"]) == []


def test_jobs_are_counted_as_joblib_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's cores may be fewer than the machine's, and below the first core there is still one job."""
    pytest.importorskip("joblib")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    assert cut_shares({"devices": 1}, -1, ["0", "1"]) == [["0"], ["1"]]
    assert cut_shares({"devices": 1}, -2, ["0"]) == cut_shares({"devices": 1}, -9, ["0"]) == []


@pytest.mark.usefixtures("process")
def test_a_sweep_that_does_not_fit_is_refused_before_the_first_job(capsys: pytest.CaptureFixture[str]) -> None:
    def start(devices: int) -> None:
        trainer = {"devices": devices, "accelerator": "gpu"}
        content = {"hydra": {"sweep": {"dir": "nowhere"}, "launcher": JOBLIB}, "trainer": trainer}
        SweepReport({}).on_multirun_start(OmegaConf.create(content))

    start(2)
    with pytest.raises(SystemExit) as stop:
        start(4)
    assert stop.value.code == 2 and "hydra.launcher.n_jobs=1" in capsys.readouterr().err


OTHER = """
import sys, pathlib
from mmrlhf.chain.shares import take_share
take_share(pathlib.Path(sys.argv[1]), [["4", "5"], ["6", "7"]])
import os; print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("process")
def test_processes_at_once_have_different_shares(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first share is another process's, which is killed in the end: then it can be had again."""
    both = [["4", "5"], ["6", "7"]]
    env = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
    assert other.stdout is not None and other.stdin is not None
    try:
        assert other.stdout.readline() == "4,5\n"
        take_share(tmp_path, both)
        assert os.environ[shares.VISIBLE] == "6,7" and shares.has_share()
        monkeypatch.setattr(shares, "_PATIENCE", 0.5)
        with pytest.raises(ConfigError, match="no GPUs became free"):
            take_share(tmp_path, both)
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    take_share(tmp_path, both)
    assert os.environ[shares.VISIBLE] == "4,5"
