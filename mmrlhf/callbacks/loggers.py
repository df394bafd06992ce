"""Where a stage's curves go besides `curves.csv`: Weights & Biases, TensorBoard, CSV."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded, write_bytes

if TYPE_CHECKING:  # Lightning takes seconds to import; who needs it imports it itself
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

# what W&B would otherwise put into the home directory: files on their way into a run, and copies of them
_WANDB_FOLDERS = {"WANDB_DATA_DIR": "staging", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}


_RUN_ID, _CHECKPOINTS = "wandb_run_id", "checkpoints"

WandbMode = Literal["auto", "online", "offline", "off"]


@dataclass
class Loggers:
    """Make the Lightning loggers of one stage, besides `curves.csv`, which every training stage writes.

    Args:
        wandb: "auto" is online when logged in to Weights & Biases and offline otherwise; the environment variable
            WANDB_MODE wins over it.
        tensorboard: also write TensorBoard event files.
        csv: also write one row per step and one column per number.
        project: Weights & Biases project.
        entity: Weights & Biases team or user; None is the account's default.
        run_name: the name that runs carry, followed by the stage.
        group: runs that W&B shows together; None is the run's name.
        columns: facts about the whole run that are stored with each stage's W&B run.

    `config` holds the settings of the stage, which are stored with its W&B run; whoever runs the stage fills it.
    """

    wandb: WandbMode = "off"
    tensorboard: bool = False
    csv: bool = False
    project: str = "mmrlhf"
    entity: str | None = None
    run_name: str = "run"
    group: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        wandb_mode(self.wandb)

    def __call__(self, folder: Path, stage: str) -> list[Logger]:
        """Open the loggers for a stage that writes into `folder`; what they store is in `folder/logs`.

        A stage that was stopped and goes on continues its W&B run, its event files and its CSV.
        """
        logs = Path(folder) / "logs"
        loggers: list[Logger] = []
        mode = wandb_mode(self.wandb)
        if self.tensorboard or self.csv or mode != "off":
            logs.mkdir(parents=True, exist_ok=True)
        if self.tensorboard:
            loggers.append(_tensorboard(logs, _resumed_step(Path(folder))))
        if self.csv:
            from mmrlhf.callbacks.curves import WideCurves

            loggers.append(WideCurves(Path(folder), logs / "csv" / "metrics.csv"))
        if mode != "off":
            loggers.append(self._wandb(logs, stage, mode))
        return loggers

    def _wandb(self, logs: Path, stage: str, mode: str) -> Logger:
        from lightning.pytorch.loggers import WandbLogger

        if mode == "offline":
            log.info("Weights & Biases is offline; `wandb sync` on the stage's logs/wandb/offline-run-* uploads later")
        logger = WandbLogger(
            project=self.project,
            entity=self.entity,
            name=f"{self.run_name} {stage}",
            group=self.group or self.run_name,
            job_type=stage,
            # the run that this stage began before it was stopped, or a new one
            id=_run_id(logs / _RUN_ID),
            save_dir=logs,
            offline=mode == "offline",
            config={**self.columns, **self.config},
        )
        # Lightning passes it on even where it is not set, and W&B then warns on every run that it has no effect.
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        return logger

    def record(self, numbers: Mapping[str, float]) -> None:
        """Store a finished stage's numbers in its W&B run, and the checkpoints it read by reference, without upload.

        A stage's own model is a reference in the runs of the stages that read it: it has not got its final place yet.
        """
        run = _open_run()
        if run is None:
            return
        run.summary.update(dict(numbers))
        for name, value in self.config.items():
            folder = Path(value) if isinstance(value, str) and value.startswith("/") else None
            if folder is not None and (folder / "config.json").is_file():
                import wandb

                model = wandb.Artifact(f"{name}-{folder.parent.name}", type="model")
                # by name only: a checksum would read every weight
                model.add_reference(folder.as_uri(), name=folder.name, checksum=False)
                run.log_artifact(model)

    def finish(self) -> None:
        """Close the run, so that the next stage opens its own and the folder may be moved."""
        run = _open_run()
        if run is not None:
            run.finish()


def _open_run() -> Any:
    """The W&B run that is open in this process, if any; W&B is never imported for a stage that did not log."""
    return getattr(sys.modules.get("wandb"), "run", None)


@contextmanager
def wandb_folders(folder: Path) -> Iterator[None]:
    """Have W&B stage and cache its files in a run's folder instead of the home directory, unless the user chose."""
    chosen = {name: str(folder / "wandb" / sub) for name, sub in _WANDB_FOLDERS.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)


def wandb_mode(wanted: WandbMode) -> str:
    """Decide between "online", "offline" and "off".

    Raises ConfigError for any other word, which would otherwise be taken for one of them.
    """
    if wanted not in ("auto", "online", "offline", "off"):
        raise ConfigError(
            "logger.wandb is not a mode", where="logger.wandb", given=wanted, expected="auto, online, offline or off"
        )
    if wanted == "off":
        return "off"
    chosen = os.environ.get("WANDB_MODE", wanted).lower()
    if chosen in ("disabled", "off", "dryrun"):
        return "offline" if chosen == "dryrun" else "off"
    if chosen == "auto":
        return "online" if _logged_in() else "offline"
    return "offline" if chosen == "offline" else "online"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = expanded(os.environ.get("NETRC", "~/.netrc"))
    try:
        return any("wandb" in host for host in netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(path: Path) -> str:
    """The W&B id of a stage's run, drawn once for all ranks and kept as long as the stage is not finished."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file() or not path.stat().st_size:  # a crash of early versions left nothing in it
            write_bytes(path, secrets.token_hex(4).encode())
        return path.read_text(encoding="utf-8")


def _resumed_step(folder: Path) -> int | None:
    """The step that training in a folder goes on from; None where it begins."""
    if not (folder / _CHECKPOINTS).is_dir():
        return None
    from mmrlhf.callbacks.checkpoints import latest_checkpoint

    newest = latest_checkpoint(folder / _CHECKPOINTS)
    return None if newest is None else int(newest.stem.removeprefix("step-"))


def _tensorboard(logs: Path, resumed: int | None) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise ConfigError(
            "TensorBoard is not installed",
            where="logger.tensorboard",
            given=True,
            fix="pip install -c constraints.txt tensorboard, or choose logger=csv",
        )
    # what was logged behind the checkpoint will be logged again: TensorBoard drops it
    purge: dict[str, Any] = {} if resumed is None else {"purge_step": resumed}
    return TensorBoardLogger(save_dir=logs, name="", version="tensorboard", **purge)
