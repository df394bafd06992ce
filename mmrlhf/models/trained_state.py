"""A training checkpoint holds what trains; what is frozen is named by a fingerprint and comes from the base again.

With adapters of a few megabytes on a model of many gigabytes, everything else in a checkpoint is a copy of the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ModelError

# key of a checkpoint: the fingerprint of what it leaves out
FROZEN = "frozen_parameters"
# values looked at in each frozen tensor: another base differs in nearly all of its values
_SAMPLED = 64


def without_frozen(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a module's state dict that training changes: all but frozen parameters."""
    frozen = frozen_parameters(module)
    return {name: value for name, value in state.items() if name not in frozen}


def with_frozen(module: nn.Module, state: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """A whole state dict again: what was saved, and the module's own frozen parameters.

    Raises:
        ModelError: these are not the ones that the checkpoint was trained with.
    """
    require_frozen(module, fingerprint)
    return {**{name: value.detach() for name, value in frozen_parameters(module).items()}, **state}


def require_frozen(module: nn.Module, fingerprint: str) -> None:
    """Compare a module's frozen parameters with those that a checkpoint was trained with; raises as `with_frozen`."""
    found = frozen_fingerprint(module)
    if found != fingerprint:
        raise ModelError(
            "this checkpoint was trained on another base: its frozen weights are not those of the model here",
            where="the checkpoint that training goes on from",
            given=f"frozen weights {found}",
            expected=f"frozen weights {fingerprint}",
            fix="give the base that training began with, and the same parts frozen; or delete the stage's folder that "
            "ends in .building to train from the start",
        )


def frozen_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that do not train, under every name that they have."""
    return {name: value for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}


def frozen_fingerprint(module: nn.Module) -> str:
    """Name the frozen parameters by their names, shapes and an even sample of their values.

    Sharded ones are gathered one by one, so the name is the same for any number of ranks; every rank has to call this.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in sorted(frozen_parameters(module).items()):
        whole = value.detach()
        flat = (whole.full_tensor() if isinstance(whole, DTensor) else whole).flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].double().cpu().numpy()
        hashed.update(f"{name} {tuple(value.shape)}".encode())
        hashed.update(sample.tobytes())
    return hashed.hexdigest()
