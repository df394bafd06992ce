"""Started by torchrun: trains the toy on every rank's share of the same steps and stores what came out.

Usage: two_ranks.py STRATEGY FILE, where STRATEGY is ddp or sharded; every method of `methods_under_test` is trained.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from stand_ins.methods_under_test import METHODS, build_method
from stand_ins.packed_toy import ToyData, ToyModel, make_steps, quiet_trainer

from mmrlhf.models.sharding import gather_state, is_sharded


def train(method: str, strategy: str, rank: int, world: int) -> dict:
    model = ToyModel()
    module = build_method(method, model, total_steps=3)
    if strategy == "ddp":
        chosen = DDPStrategy(process_group_backend="gloo")
    else:
        chosen = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    trainer = quiet_trainer(strategy=chosen, devices=world)
    share = make_steps(3, num_micro=4, rank=rank, world=world)
    trainer.fit(module, datamodule=ToyData(share, share[:1]))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.validate(module, datamodule=ToyData(share, share[1:2]), verbose=False)
    assert is_sharded(model) == (strategy == "sharded")
    accuracy = {"accuracy": module.validation_metrics.get("accuracy")}
    scores = module.heldout_scores and {**vars(module.heldout_scores), **accuracy}
    state = gather_state(model)
    assert bool(state) == (rank == 0), "no rank but the first ever gathers the whole model"
    return {"state": state, "metrics": metrics, "scores": scores}


def main(strategy: str, path: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {method: train(method, strategy, rank, world) for method in METHODS}
    if rank == 0:
        torch.save(found, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main(*sys.argv[1:])
