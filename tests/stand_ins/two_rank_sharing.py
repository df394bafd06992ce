"""Started by torchrun: stages one after another in the same two processes, of which one is slow. Usage: FILE OUT."""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.demos.boring_classes import BoringModel

from mmrlhf.chain.runtime import Runtime
from mmrlhf.files import write_json
from mmrlhf.inference.sharing import share_pass
from mmrlhf.processes import gather_ranks, leave_group

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    out = Path(sys.argv[1])
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = partial(L.Trainer, accelerator="cpu", devices=2, strategy="ddp", logger=False, **quiet)
    found = []
    for number in range(3):
        with share_pass(Runtime(trainer=trainer, progress=False)) as ranks:
            found.append([ranks.gather((number, ranks.rank)), ranks.share(np.arange(5)).tolist()])
            found.append(ranks.total({"queries": 1 + ranks.rank}))
        time.sleep(2 * ranks.rank)  # the other one is at the next stage before this one has left
        if number == 1:
            trainer(max_steps=1, limit_val_batches=0).fit(BoringModel())
            found.append(gather_ranks(ranks.rank))
    write_json(out / f"{ranks.rank}.json", found)
    leave_group()
