"""Started by torchrun: bf16 log-probabilities of every query's responses, by a model on two ranks, whole and sharded.

Usage: two_rank_modes.py SHARDS POLICY OUT (each rank writes OUT/MODE-RANK.pt: key -> log-probabilities).
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.models.forward import autocast
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.sharding import shard_model
from mmrlhf.shards.index import Index
from mmrlhf.tokens.packing import pack_groups

BF16 = PassSettings(ModelSettings(precision="bf16"))


def say(policy: Policy, model: torch.nn.Module, index: Index, rows: list[int], size: int = 2) -> dict:
    """Log-probabilities of rows, `size` queries in a packed row."""
    found = {}
    for start in range(0, len(rows), size):
        groups = [policy.encoder(index.read(row)) for row in rows[start : start + size]]
        with torch.no_grad(), autocast(policy.model.settings, torch.device("cpu")):
            logprob = model(pack_groups(groups)).logprob
        parts = logprob.split([len(group.branches) for group in groups])
        found |= {group.key: part.clone() for group, part in zip(groups, parts, strict=True)}
    return found


def main(shards: Path, folder: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    index = Index.load(shards)
    half = len(index) // world
    rows = list(range(rank * half, (rank + 1) * half))
    for mode in ("ddp", "fsdp"):
        policy = Policy.from_pretrained(folder, BF16, device=torch.device("cpu"))
        model: torch.nn.Module = policy.model
        if mode == "ddp":
            model = DistributedDataParallel(model.requires_grad_(True))
        else:
            shard_model(model, mesh, precision="bf16")
        torch.save(say(policy, model, index, rows), out / f"{mode}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main(*map(Path, sys.argv[1:]))
