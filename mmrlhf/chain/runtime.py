"""What a stage is given that does not change its result: the machine, the loggers, progress and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrlhf.ranges import Natural, NonNegative, Share
from mmrlhf.records.quarantine import MAX_DAMAGED

if TYPE_CHECKING:  # Lightning takes seconds to import; a stage that needs it imports it itself
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger


@dataclass
class Runtime:
    """Everything around a stage that leaves its result unchanged, and therefore out of its fingerprint.

    Args:
        trainer: a partial of `lightning.Trainer` with accelerator, devices, strategy and num_nodes; a stage calls it
            with its own steps, callbacks and loggers.
        loggers: (folder, stage name) -> Lightning loggers.
        num_workers: DataLoader worker processes on each rank.
        cache_gib: memory for encoded training queries, so that later epochs do not decode them again.
        vision_cache_gib: disk for features of pictures that a frozen tower and projector made; 0 keeps none.
        vision_cache: folder for these, for any number of models and runs.
        verdicts: folder of judges' verdicts on answers to benchmarks, for any number of runs.
        answers: folder of the answers of models behind endpoints, for any number of stages and runs.
        annotations: folder of what people write on the annotation page, a file for each set of queries.
        annotation_port: port of that page on this machine; 0 takes a free one.
        max_damaged: share of a run's queries that may be left out because they cannot be used; one may be in any case.
        preflight: what becomes of queries that will not fit or be refused, all found before a stage starts: they are
            left out and counted with the damaged ones (`quarantine`), or end the run (`error`).
        progress: show progress bars.
        callbacks: Lightning callbacks for every training stage.
        command: what was typed, for pages that say how they were made.
    """

    trainer: Callable[..., L.Trainer]
    loggers: Callable[[Path, str], list[Logger]] = lambda folder, stage: []
    num_workers: Natural = 0
    cache_gib: NonNegative = 0.0
    vision_cache_gib: NonNegative = 0.0
    vision_cache: Path | str = "vision_features"
    verdicts: Path | str = "verdicts"
    answers: Path | str = "answers"
    annotations: Path | str = "annotations"
    annotation_port: Natural = 8010
    max_damaged: Share = MAX_DAMAGED
    preflight: str = "quarantine"
    progress: bool = True
    callbacks: list[Callback] = field(default_factory=list)
    command: str = ""

    @property
    def machine(self) -> Mapping[str, Any]:
        """What the trainer would be called with (accelerator, devices, num_nodes, ...), as far as it says so."""
        return self.trainer.keywords if isinstance(self.trainer, partial) else {}
