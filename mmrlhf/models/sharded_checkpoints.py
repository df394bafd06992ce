"""FSDP2 whose checkpoints hold what trains, as those of other strategies do: every rank its shards, and no base.

Follows: Lightning's `ModelParallelStrategy`, whose sharded checkpoints are folders written by torch's distributed
checkpointing, which reads them for any number of ranks. Differs in: frozen parameters are left out and stay as they
were loaded; whose they were is told by the fingerprint in the checkpoint (`mmrlhf.models.trained_state`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from typing_extensions import override

from mmrlhf.models.sharding import OVER_ALL, Sharding, move_whole
from mmrlhf.models.trained_state import without_frozen

# in a checkpoint's folder: all that is no tensor of the model or the optimizer
REST = "rest.pt"
_MODEL, _OPTIMIZER = "state_dict", "optimizer_states"


class TrainedShards(ModelParallelStrategy):
    """FSDP2 with sharded checkpoints of what trains.

    Args:
        size: ranks.
        sharding: over how many of them a model is split, and where its shards lie.
    """

    def __init__(self, size: int, sharding: Sharding = OVER_ALL) -> None:
        # norms of gradients on the host are summed over ranks there
        backend = "cpu:gloo,cuda:nccl" if sharding.cpu_offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size=size, tensor_parallel_size=1, process_group_backend=backend)
        self.sharding = sharding

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        if self.sharding.cpu_offload:
            move_whole(self.model, self.root_device)
        else:
            super().model_to_device()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        state: dict[str, Any] = get_model_state_dict(self.model, options=StateDictOptions(cpu_offload=True))
        return without_frozen(self.model, state)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint's folder, on all ranks together."""
        path = Path(self.broadcast(filepath))
        path.mkdir(parents=True, exist_ok=True)
        optimizers = {_optimizer(number): state for number, state in enumerate(checkpoint.pop(_OPTIMIZER, []))}
        save({_MODEL: checkpoint.pop(_MODEL), **optimizers}, checkpoint_id=path)
        if self.is_global_zero:
            torch.save(checkpoint, path / REST)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Put a folder's tensors into the model and its optimizers, on all ranks together; returns the rest."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        state: dict[str, Tensor] = without_frozen(self.model, get_model_state_dict(self.model))
        load({_MODEL: state}, checkpoint_id=path)
        self.model.load_state_dict(state, strict=False)  # the rest is frozen, and there
        for number, optimizer in enumerate(self.optimizers):
            name, own = _optimizer(number), get_optimizer_state_dict(self.model, optimizer)
            load({name: own}, checkpoint_id=path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=own, options=options)
        return torch.load(path / REST, weights_only=False)


def _optimizer(number: int) -> str:
    return f"optimizer_{number}"
