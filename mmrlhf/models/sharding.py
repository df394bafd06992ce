"""FSDP2 for a packed model: the language model is sharded layer by layer, everything else stays whole on every rank.

Follows: torchtitan's order (each decoder layer, then the root). Differs in: vision tower, projector and score head are
replicated, so that a rank whose micro-batch holds no image neither waits for the others nor keeps them waiting; the
training step averages their gradients. And in bf16 every number is what autocast makes of whole float32 weights
(docs/precision.md): torchtitan's single policy rounds the embedding and the weights of norms to bfloat16, too, and
with them the residual stream.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.export
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import language_layers, parts
from mmrlhf.processes import count_devices
from mmrlhf.ranges import Count
from mmrlhf.types import ResponseOutputs

if TYPE_CHECKING:  # takes seconds to import, and a single device never asks for it
    from lightning.pytorch.strategies import Strategy


def is_sharded(model: nn.Module) -> bool:
    """Say whether `shard_model` has been applied."""
    return isinstance(model, FSDPModule)


def shard_model(model: nn.Module, mesh: DeviceMesh, *, precision: str) -> None:
    """Shard a packed model in place over the mesh's data-parallel dimension.

    Args:
        model: a `PackedModel`, or anything with a backbone of the same build in `backbone`.
        mesh: Lightning's device mesh with the dimensions `data_parallel` and `tensor_parallel`.
        precision: "bf16" gathers what matrices multiply with in bfloat16 and the embedding in float32; norms and
            biases stay whole on every rank. Gradients are averaged in float32.

    Raises:
        ConfigError: the mesh asks for tensor parallelism.
    """
    if mesh["tensor_parallel"].size() != 1:
        raise ConfigError(
            "the strategy splits single layers over devices (tensor parallelism), which this project does not do",
            where="trainer.strategy",
            given=f"tensor_parallel_size={mesh['tensor_parallel'].size()}",
            expected="1, and data_parallel_size = devices * num_nodes",
        )
    _make_outputs_visible_to_fsdp()
    # Inputs are left alone: autocast decides per operation, and position ids or masks must keep their type.
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = replace(whole, param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else whole
    backbone: Any = model.backbone
    # Only what matrices multiply with may be gathered in bfloat16; vectors are small enough to be whole.
    # What is stored in fewer bits than it trains with does not train, and lies on every rank as it was read.
    language = {p for p in parts(backbone)["language"] if p.ndim >= 2 and p.dtype is torch.float32}
    replicated = {parameter for parameter in model.parameters() if parameter not in language}
    shared = {"mesh": mesh["data_parallel"], "ignored_params": replicated}
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


def sharded_strategy(*, devices: int | str | list[int], num_nodes: Count, accelerator: str) -> Strategy:
    """Make the strategy that splits one model over all devices of all machines (FSDP2, no tensor parallelism).

    Args:
        devices: of each machine, as in `lightning.Trainer`.
        num_nodes: machines.
        accelerator: kind of device, as in `lightning.Trainer`.
    """
    from mmrlhf.models.sharded_checkpoints import TrainedShards

    size = count_devices(devices, accelerator) * num_nodes
    return TrainedShards(data_parallel_size=size, tensor_parallel_size=1)
