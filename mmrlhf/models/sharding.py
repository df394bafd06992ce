"""FSDP2 for a packed model: the language model is sharded layer by layer, nearly everything else is on every rank.

Follows: torchtitan's order (each decoder layer, then the root). Differs in: vision tower, projector and score head are
replicated, so that a rank whose micro-batch holds no image neither waits for the others nor keeps them waiting; the
training step averages their gradients. A large tower that is frozen is sharded, too, and gathered as a whole by all
ranks at the beginning of every forward (`mmrlhf.models.tower_shards`). And in bf16 every number is what autocast makes
of whole float32 weights (docs/precision.md): torchtitan's single policy rounds the embedding and the weights of norms
to bfloat16, too, and with them the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.export
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import language_layers, parts
from mmrlhf.models.settings import require_shardable
from mmrlhf.models.tower_shards import LARGE_TOWER, shard_tower
from mmrlhf.processes import check_shard_size, count_devices
from mmrlhf.ranges import Count
from mmrlhf.tensors import ResponseOutputs

if TYPE_CHECKING:  # takes seconds to import, and a single device never asks for it
    from lightning.pytorch.strategies import Strategy


@dataclass(frozen=True)
class Sharding:
    """How a model is split over ranks.

    shard_size: ranks that share one model; there are as many copies of it as that leaves (HSDP). None: all ranks share
    one. cpu_offload: shards, their gradients and the optimizer's state lie on the host. large_tower: parameters from
    which on a frozen vision tower is sharded, too.
    """

    shard_size: int | None = None
    cpu_offload: bool = False
    large_tower: int = LARGE_TOWER


OVER_ALL = Sharding()


def is_sharded(model: nn.Module) -> bool:
    """Say whether `shard_model` has been applied."""
    return isinstance(model, FSDPModule)


def shard_model(model: nn.Module, mesh: DeviceMesh, *, precision: str, sharding: Sharding = OVER_ALL) -> None:
    """Shard a packed model in place over the mesh's data-parallel dimension.

    Args:
        model: a `PackedModel`, or anything with a backbone of the same build in `backbone`.
        mesh: Lightning's device mesh with the dimensions `data_parallel` and `tensor_parallel`.
        precision: "bf16" gathers what matrices multiply with in bfloat16 and the embedding in float32; norms and
            biases stay whole on every rank. Gradients are averaged in float32.
        sharding: over how many ranks, and where shards lie.

    Raises:
        ConfigError: the mesh asks for tensor parallelism, or the model computes a row for each response.
    """
    if mesh["tensor_parallel"].size() != 1:
        raise ConfigError(
            "the strategy splits single layers over devices (tensor parallelism), which this project does not do",
            where="trainer.strategy",
            given=f"tensor_parallel_size={mesh['tensor_parallel'].size()}",
            expected="1, and data_parallel_size = devices * num_nodes",
        )
    require_shardable(getattr(model, "layout", "packed"))
    _make_outputs_visible_to_fsdp()
    # Inputs are left alone: autocast decides per operation, and position ids or masks must keep their type.
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = replace(whole, param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else whole
    backbone: Any = model.backbone
    # Only what matrices multiply with may be gathered in bfloat16; vectors are small enough to be whole.
    # Weights in 4 and 8 bits lie on every rank as they were read: their scales belong to whole tensors.
    language = {p for p in parts(backbone)["language"] if p.ndim >= 2 and p.is_floating_point()}
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if sharding.cpu_offload else OffloadPolicy()
    over = _data_mesh(mesh, sharding.shard_size)
    tower = shard_tower(backbone, over, large=sharding.large_tower, mp_policy=policy, offload_policy=offload)
    replicated = {parameter for parameter in model.parameters() if parameter not in language | tower.parameters}
    shared: dict[str, Any] = {"mesh": over, "ignored_params": replicated, "offload_policy": offload}
    for layer in language_layers(backbone):
        fully_shard(layer, mp_policy=policy, **shared)
    embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if head is not None and head.weight is not embedding.weight:
        fully_shard(embedding, mp_policy=whole, **shared)
    else:
        # The head's weight, too, which autocast rounds as it would elsewhere.
        policy = whole
    fully_shard(model, mp_policy=policy, **shared)
    if hasattr(model, "extend"):  # what generation calls: without its own forward it would find the root's shards
        register_fsdp_forward_method(model, "extend")
    tower.gather_in(model, backbone)


def _data_mesh(mesh: DeviceMesh, shard_size: int | None) -> DeviceMesh:
    """The ranks that share a model, as one dimension, or as copies x ranks that share one, neighbours together."""
    ranks = mesh["data_parallel"]
    if shard_size is None or shard_size == ranks.size():
        return ranks
    check_shard_size(shard_size, ranks.size())
    shape = (ranks.size() // shard_size, shard_size)
    return init_device_mesh(ranks.device_type, shape, mesh_dim_names=("replicate", "shard"))


def move_whole(model: nn.Module, device: torch.device) -> None:
    """Move all but shards to a device, before there is an optimizer: with `cpu_offload` those stay on the host."""
    for module in model.modules():
        if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            module.to(device)
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                setattr(module, name, nn.Parameter(parameter.detach().to(device), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def gather_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect the whole state dict on the host of rank 0 (empty elsewhere); every rank must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


@cache
def _make_outputs_visible_to_fsdp() -> None:
    """FSDP2 hooks the tensors that a module returns, and finds those in a dataclass only if torch knows the class."""
    torch.export.register_dataclass(ResponseOutputs)


def sharded_strategy(
    *,
    devices: int | str | list[int],
    num_nodes: Count,
    accelerator: str,
    shard_size: Count | None = None,
    cpu_offload: bool = False,
) -> Strategy:
    """Make the strategy that splits one model over devices of all machines (FSDP2, no tensor parallelism).

    Args:
        devices: of each machine, as in `lightning.Trainer`.
        num_nodes: machines.
        accelerator: kind of device, as in `lightning.Trainer`.
        shard_size: devices that share one model, neighbours first (HSDP); null: all share one.
        cpu_offload: shards, their gradients and the optimizer's state lie on the host; slow, for cards that are small.

    Raises:
        ConfigError: the devices cannot be parted into groups of `shard_size`.
    """
    from mmrlhf.models.sharded_checkpoints import TrainedShards

    size = count_devices(devices, accelerator) * num_nodes
    check_shard_size(shard_size, size)
    return TrainedShards(size, Sharding(shard_size=shard_size, cpu_offload=cpu_offload))
