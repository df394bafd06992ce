"""The command: composes the config, checks the whole chain, runs it, and shows what came out.

Only this file and `mmrlhf.composition` see the config or make objects of it; stages and everything below take plain
arguments.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.callbacks.loggers import wandb_folders
from mmrlhf.chain.artifact import Artifact
from mmrlhf.chain.disk_errors import disk_errors
from mmrlhf.chain.forecast import forecast_chain
from mmrlhf.chain.launch import EXIT_INTERRUPTED, WorkerFailed, hand_on
from mmrlhf.chain.order import Node, plan_chain
from mmrlhf.chain.provenance import as_typed, command_line, program, typed_command
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.shares import has_share, job_shares, take_share
from mmrlhf.chain.store import Store
from mmrlhf.chain.worker import work_on
from mmrlhf.composition.calls import COMMAND, invoke, quieten_libraries, show_plan
from mmrlhf.composition.checks import check_chain, check_checkpoints
from mmrlhf.composition.compose import with_search_path
from mmrlhf.composition.config import (
    CONF,
    distributed_names,
    read_code_policy,
    read_folder,
    read_runtime,
    read_stage,
    read_switch,
    section,
    stage_names,
    user_inputs,
)
from mmrlhf.composition.help_page import asks_for_help, help_page
from mmrlhf.composition.inventory_command import WORD, show_or_prune
from mmrlhf.composition.machine import check_machine, check_split
from mmrlhf.composition.overrides import explain, raised_by_hydra
from mmrlhf.composition.proposals import propose
from mmrlhf.composition.serve_command import SERVE, serve_or_explain
from mmrlhf.composition.trainer import check_trainer, decisive_callbacks
from mmrlhf.composition.typed_key import named_keys
from mmrlhf.composition.unread import check_read
from mmrlhf.errors import UserError
from mmrlhf.files import mask_files, short_path
from mmrlhf.processes import Group, TrainingInterrupted, leave_group
from mmrlhf.reporting.outcome import record_failure, record_outcome, show_error, show_forecast, show_outcome
from mmrlhf.sweeps.results import flatten, searched
from mmrlhf.terminal.log_lines import LineFormatter

log = logging.getLogger(__name__)

_QUIET_RANK = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled")
_FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """Run what the command line asks for; exit code 0, 2 for a mistake of the user's, 1 for anything else."""
    _write_anything()
    # peft imports it wherever it is installed, and it advises a package of compiled kernels then
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    words = sys.argv[1:]
    if words[:1] == ["--worker"]:
        sys.exit(_worker(Path(words[1])))
    if words[:1] != [SERVE] and asks_for_help(words):
        print(help_page())
        return
    if words[:1] in ([WORD], [SERVE], ["settings"]):
        sys.exit(_first_word(words))
    try:
        words = with_search_path(words)
    except UserError as error:
        show_error(error)
        sys.exit(2)
    sys.argv[1:] = words
    if Group.from_environment().rank > 0:
        sys.argv += _QUIET_RANK  # one run folder and one voice for a group of processes
    wants_trace = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # Hydra hands its errors on instead of printing them
    try:
        with disk_errors():  # Hydra makes the run's folder before a job begins
            _job()
    except UserError as error:
        show_error(error)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        # a job shows its own errors: these are of the command line
        if wants_trace:
            raise
        show_error(explain(error, words))
        sys.exit(2)
    except Exception as error:
        from mmrlhf.sweeps.callback import collect_lost

        # jobs keep their errors to themselves: this is the launcher's, or of the command line
        if collect_lost(error):
            sys.exit(1)
        if wants_trace or not raised_by_hydra(error):
            raise
        show_error(explain(error, words))
        sys.exit(2)


def _first_word(words: Sequence[str]) -> int:
    """Print settings (`settings [KEY ...]`) or what the store holds (`artifacts [prune]`), or be a server (`serve`)."""
    try:
        if words[0] == WORD:
            with disk_errors():
                show_or_prune(words[1:])
        elif words[0] == SERVE:
            _show_log(logging.INFO)
            serve_or_explain(words[1:], prepare=quieten_libraries)
        else:
            from mmrlhf.composition.listing import as_text, list_settings

            print(as_text(list_settings(words[1:])))
    except UserError as error:
        show_error(error)
        return 2
    except Exception as error:
        if not raised_by_hydra(error):
            raise
        show_error(explain(error, words[1:], SERVE if words[0] == SERVE else "config"))
        return 2
    return 0


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(config: DictConfig) -> float | None:
    """Run one job; in a sweep a failed job is recorded and the next one goes on.

    Returns the first of `sweep_metrics` that this job has, for sweepers that search by it; None without a search.
    """
    settings = HydraConfig.get()
    if Group.from_environment().rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # one voice for a group of processes
    folder, sweeping = Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN
    if settings.output_subdir:
        mask_files(folder / settings.output_subdir, "*.yaml")  # Hydra's copy of the words and the config
    try:
        artifacts_folder = read_folder(config, "paths.artifacts")
        if sweeping and not has_share():
            take_share(Path(settings.sweep.dir), job_shares(settings.launcher, section(config, "trainer")))
        words = settings.overrides.task
        command = command_line([*_own_folders(), *words]) if sweeping else typed_command()
        with disk_errors(artifacts_folder, folder):
            artifacts = run_chain(config, folder, shows=not sweeping, command=command, words=words)
    except (UserError, WorkerFailed) as error:
        show_error(error)
        _stop(folder, error, sweeping, code=2 if isinstance(error, UserError) else 1)
    except TrainingInterrupted as stop:
        log.warning("%s; the same command continues", stop)
        if sweeping:
            record_failure(folder, stop)  # until it has gone on to its end
        leave(stop)
    except Exception as error:
        log.exception("this job failed; the sweep goes on" if sweeping else "the run failed")
        _stop(folder, error, sweeping, code=1)
    else:
        leave_group()
        if sweeping and "direction" in settings.sweeper:
            return _searched(config, artifacts, folder, settings.sweeper.direction)
    return None


def _own_folders() -> list[str]:
    """Words that say where configs of the user's own are."""
    said = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    return as_typed([word for word in said if word.startswith("hydra.searchpath=")])


def _searched(config: DictConfig, artifacts: Sequence[Artifact], folder: Path, direction: Any) -> float:
    """The number that a search goes by; without one it ends here, before all other jobs train for nothing."""
    from mmrlhf.sweeps.callback import make_metrics

    if not artifacts:
        log.info("with dry or plan nothing is built: a search chooses later points by results, so it ends at its first")
        sys.exit()
    numbers = dict(flatten({artifact.stage: artifact.summary for artifact in artifacts}))
    try:
        return searched(make_metrics(config.sweep_metrics), numbers, str(getattr(direction, "name", direction)))
    except UserError as error:
        show_error(error)
        record_failure(folder, error)
        sys.exit(2)


def leave(stop: TrainingInterrupted) -> NoReturn:
    """End after training has saved on a signal: with exit code 143, or as the launcher says whose signal it was."""
    handed_on = stop.signal is not None and hand_on(stop.signal)
    # the first rank's launcher submits the job again; a failure of another rank could make srun end it before that
    sys.exit(0 if handed_on and Group.from_environment().rank > 0 else EXIT_INTERRUPTED)


def _stop(folder: Path, error: Exception, sweeping: bool, *, code: int) -> None:
    if not sweeping:
        sys.exit(code)
    record_failure(folder, error)


def run_chain(
    config: DictConfig, folder: Path, *, shows: bool = True, command: str = "", words: Sequence[str] = ()
) -> list[Artifact]:
    """Run the stages that `config.stage` needs, leave the outcome in `folder`, and show it.

    Everything that can be known to be wrong is raised before the first stage starts: unknown stages and settings,
    missing values, impossible objects, inputs that do not exist, checkpoints that cannot be fetched.

    Args:
        command: that does the same again, for the report and the run's folder.
        words: overrides of this run, which the commands that are proposed next begin with.
    """
    inputs = user_inputs(config)
    dry, plan = read_switch(config, "dry"), read_switch(config, "plan")
    chain = plan_chain(str(config.stage), lambda name: read_stage(config, name), stage_names(config))
    runtime = read_runtime(config)
    _check(config, chain, runtime, inputs)
    runner = Runner(
        Store(read_folder(config, "paths.artifacts")),
        invoke,
        runtime={**runtime, COMMAND: command},
        inputs=inputs,
        distributed=distributed_names(config),
        work=folder,
        code=read_code_policy(config),
        callbacks=decisive_callbacks(runtime),
    )
    log.info("stages: %s", " -> ".join(node.name for node in chain))
    forecasts = forecast_chain(chain, runner)
    built = {forecast.stage for forecast in forecasts if not forecast.reused}
    with named_keys(config):
        check_split(chain, runtime, built)
        if not (dry or plan):  # which are asked on one machine about another
            check_machine(chain, runtime, built)
    if dry:
        if runner.group.rank == 0:
            show_forecast(forecasts)
        return []
    if plan:
        show_plan(chain, runner, folder)
        return []
    with wandb_folders(folder), named_keys(config):
        artifacts = runner.run(chain)
    if runner.group.rank == 0:
        settings = {"stages": {node.name: node.settings for node in chain}, "runtime": runtime}
        record_outcome(folder, artifacts, settings, command=command)
        if shows:
            proposed = propose(config, words, program=program(), folders=_own_folders())
            show_outcome(folder, artifacts, next_commands=proposed)
        else:
            log.info("this job is done: %s", short_path(folder))
    return artifacts


def _check(config: DictConfig, chain: Sequence[Node], runtime: Mapping[str, Any], inputs: frozenset[str]) -> None:
    """Raise what is known to be wrong before the first stage starts."""
    with named_keys(config):
        check_trainer(runtime)
        check_read(config)
        check_checkpoints(config, chain)
        check_chain(chain, runtime, inputs)


def _write_anything() -> None:
    """Let a terminal of another encoding show what it cannot write as escapes, instead of failing at the end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _worker(call_file: Path) -> int:
    rank = int(os.environ.get("RANK", 0))
    _show_log(logging.INFO if rank == 0 else logging.WARNING)
    return work_on(call_file, invoke, rank)


def _show_log(level: int) -> None:
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[lines], force=True)


if __name__ == "__main__":
    main()
