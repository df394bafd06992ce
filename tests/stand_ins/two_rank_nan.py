"""Started by torchrun: one rank's share of a step holds a query whose reward is not a number.

Usage: two_rank_nan.py STRATEGY (ddp or sharded); each rank prints how it stopped.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import replace

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from stand_ins.methods_under_test import build_method
from stand_ins.packed_toy import ToyData, ToyModel, make_group, make_step, quiet_trainer

from mmrlhf.errors import ModelError
from mmrlhf.models.sharding import gather_state


def main(strategy: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    groups = [make_group(number) for number in range(4)]
    columns = {**groups[1].columns, "reference_logprob": torch.full((4,), torch.nan)}
    groups[1] = replace(groups[1], columns=columns)
    chosen = DDPStrategy(process_group_backend="gloo")
    if strategy == "sharded":
        chosen = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    trainer = quiet_trainer(strategy=chosen, devices=world)
    model = ToyModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = make_step(0, groups, num_micro=4, rank=rank, world=world)
    try:
        trainer.fit(build_method("preference", model, total_steps=1), datamodule=ToyData([step], [step]))
    except ModelError as error:
        same = all(torch.equal(value, before[name]) for name, value in gather_state(model).items())
        named = "group1" in str(error)
        if same and named:
            print(f"rank {rank}: stopped before the update, group1 named\n", end="", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    main(*sys.argv[1:])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
