"""Started by torchrun: reference, answers, and those of several responders on two ranks.

Usage: two_rank_passes.py SHARDS POLICY OUT.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.settings import PassSettings
from mmrlhf.processes import leave_group
from mmrlhf.responders import checkpoint
from mmrlhf.stages import generate, reference, respond

SETTINGS: dict[str, Any] = {"passes": PassSettings(groups_per_batch=2), "holdout": 0.3}
ASKED: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 6}


def run(out: Path, shards: Path, policy: Path, runtime: Runtime) -> list[dict[str, Any]]:
    """Make the three artefacts."""
    checkpoint.BATCHES_PER_WINDOW = 2  # so that there are several windows
    runtime = replace(runtime, answers=out / "answers")
    inputs: dict[str, Any] = {"shards": shards, "policy": policy, "runtime": runtime, **SETTINGS}
    responders = {
        "own": {"kind": "local", "model": str(policy), "num_samples": 3},
        "again": {"kind": "local", "model": str(policy), "seed": 5},
        "other": {"kind": "stand_in"},
    }
    return [
        reference.run(out / "reference", **inputs),
        generate.run(out / "generate", **inputs, **ASKED),
        respond.run(out / "respond", shards=shards, responders=responders, passes=SETTINGS["passes"],
                    max_new_tokens=6, keep_cut=True, runtime=runtime),
    ]  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    shards, policy, out = map(Path, sys.argv[1:])
    trainer = partial(L.Trainer, accelerator="cpu", devices=2, strategy="ddp")
    run(out, shards, policy, Runtime(trainer=trainer, progress=False))
    leave_group()
