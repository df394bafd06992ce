"""From plain settings to a call: what they describe is made, and the stage's function is called, or only planned."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.callbacks.loggers import Loggers
from mmrlhf.chain.disk_errors import disk_errors
from mmrlhf.chain.order import Node, stage_function, with_paths
from mmrlhf.chain.runner import Runner
from mmrlhf.chain.runtime import Runtime
from mmrlhf.chain.worker import StageCall
from mmrlhf.composition.instantiate import make, make_runtime
from mmrlhf.composition.typed_key import placed_arguments
from mmrlhf.files import hide_credentials, write_json
from mmrlhf.sweeps.results import flatten
from mmrlhf.trees import plain

COMMAND = "command"  # in the runtime's settings


def show_plan(chain: Sequence[Node], runner: Runner, folder: Path) -> None:
    """Print what every training stage would do and leave it in `plan.json`; nothing is trained."""
    from mmrlhf.training.chain_preview import preview_chain
    from mmrlhf.training.preview_table import as_record, show_previews

    def made(node: Node) -> dict[str, Any]:
        return make(node.settings, f"stages.{node.name}")

    previews = preview_chain(chain, runner, make=made)
    if runner.group.rank == 0:
        show_previews(previews)
        write_json(folder / "plan.json", {name: as_record(preview) for name, preview in previews.items()})


def invoke(call: StageCall) -> Mapping[str, Any]:
    """Make the objects that a call's settings describe and call its stage function."""
    from mmrlhf.terminal.progress import progress_switch

    function = stage_function(call.target)
    arguments = make(call.settings, f"stages.{call.stage}")
    quieten_libraries()
    about = {name: value for name, value in call.runtime.items() if name != COMMAND}  # a command may hold ${...}
    runtime = Runtime(**make_runtime(about), command=str(call.runtime.get(COMMAND, "")))
    loggers = runtime.loggers
    if isinstance(loggers, Loggers):
        loggers.config = hide_credentials({"stage": call.stage, **call.settings})
    try:
        with (
            placed_arguments(call.settings, f"stages.{call.stage}"),
            progress_switch(runtime.progress),
            disk_errors(Path(call.out)),
        ):
            summary = function(Path(call.out), **with_paths(function, arguments), runtime=runtime)
        if isinstance(loggers, Loggers):
            loggers.record(dict(flatten(plain(summary))))
        return summary
    finally:
        if isinstance(loggers, Loggers):
            loggers.finish()


def quieten_libraries() -> None:
    """Leave the terminal to our own lines; called after a stage's imports, on which libraries set these."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # advice on worker processes (runtime.num_workers is a setting of ours), and Lightning's use of an old torch name
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()
