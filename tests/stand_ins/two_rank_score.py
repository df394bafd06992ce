"""Started by torchrun: scores queries on two ranks. Usage: two_rank_score.py SHARDS REWARD_MODEL OUT."""

from __future__ import annotations

import logging
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.stages import score

SETTINGS = {
    "passes": PassSettings(groups_per_batch=2),
    "critiques": CritiqueSettings(max_tokens=6),
    "holdout": 0.3,
    "compare_given": True,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    shards, reward_model, out = map(Path, sys.argv[1:])
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu", devices=2, strategy="ddp"), progress=False)
    score.run(out, shards=shards, reward_model=reward_model, **SETTINGS, runtime=runtime)
