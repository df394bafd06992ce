"""Loggers: online only when logged in, off means off, and each stage gets a run of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

from mmrlhf.callbacks.loggers import Loggers, wandb_folders, wandb_mode
from mmrlhf.errors import ConfigError
from mmrlhf.models.sharding import sharded_strategy


@pytest.fixture(autouse=True)
def _logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_online_when_logged_in_offline_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0\n")
    assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").write_text("machine example.org login user password 0\n")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0")
    assert wandb_mode("auto") == "online" and wandb_mode("offline") == "offline"


@pytest.mark.parametrize(("variable", "mode"), [("disabled", "off"), ("offline", "offline"), ("online", "online")])
def test_the_environment_wins(variable: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode("auto") == mode and wandb_mode("off") == "off"


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="auto, online, offline or off"):
        Loggers(wandb="sometimes")  # type: ignore[arg-type]


def test_off_means_off(tmp_path: Path) -> None:
    loggers = Loggers(wandb="off")
    assert loggers(tmp_path, "sft") == [] and list(tmp_path.iterdir()) == []
    loggers.finish()


def test_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrlhf.callbacks.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        Loggers(wandb="off", tensorboard=True)(tmp_path, "sft")


def test_sharding_uses_all_devices() -> None:
    strategy = sharded_strategy(devices=4, num_nodes=2, accelerator="gpu")
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (8, 1)


def test_an_offline_run_stays_in_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run: it can be finished, and nothing goes to the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    loggers = Loggers(wandb="offline", run_name="test")
    with wandb_folders(tmp_path / "run"):
        [logger] = loggers(tmp_path / "stage", "sft")
        logger.log_metrics({"loss": 1.0}, step=0)
        loggers.finish()
    assert list((tmp_path / "stage" / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    assert not (tmp_path / "home").exists()


def test_folders_that_the_user_chose_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", "chosen")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    with wandb_folders(tmp_path):
        assert os.environ["WANDB_CACHE_DIR"] == "chosen"
        assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path)
    assert os.environ["WANDB_CACHE_DIR"] == "chosen" and "WANDB_DATA_DIR" not in os.environ
