"""A training checkpoint holds what trains; what is frozen is named by a fingerprint and comes from the base again.

With adapters of a few megabytes on a model of many gigabytes, everything else in a checkpoint is a copy of the base.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ModelError

# key of a checkpoint: the fingerprint of what it leaves out
FROZEN = "frozen_parameters"
# key of a checkpoint: the types that these are stored in
STORAGE = "frozen_storage"
# values looked at in each frozen tensor: another base differs in nearly all of its values
_SAMPLED = 64


class FrozenBase:
    """A module's frozen parameters, which its checkpoints leave out.

    Args:
        module: whose frozen parameters do not change.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @cached_property
    def _fingerprint(self) -> str:
        return frozen_fingerprint(self._module)

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Keep of a checkpoint's state dict what trains, and name the rest in it; every rank has to call this."""
        checkpoint["state_dict"] = without_frozen(self._module, checkpoint["state_dict"])
        checkpoint |= {FROZEN: self._fingerprint, STORAGE: frozen_storage(self._module)}

    def put_back(self, checkpoint: dict[str, Any], *, loaded: bool) -> None:
        """Make a checkpoint's state dict whole again, or, where what trains is `loaded`, only compare the base.

        Raises:
            ModelError: as `with_frozen`.
        """
        fingerprint, storage = checkpoint[FROZEN], checkpoint.get(STORAGE)
        if loaded:
            require_frozen(self._module, fingerprint, storage)
        else:
            checkpoint["state_dict"] = with_frozen(self._module, checkpoint["state_dict"], fingerprint, storage)


def without_frozen(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a module's state dict that training changes: all but frozen parameters."""
    frozen = frozen_parameters(module)
    # beside a quantised weight lie its scales: `layer.weight.absmax`
    return {name: value for name, value in state.items() if not _prefixes(name) & frozen.keys()}


def with_frozen(
    module: nn.Module, state: Mapping[str, Any], fingerprint: str, storage: str | None = None
) -> dict[str, Any]:
    """A whole state dict again: what was saved, and the module's own frozen parameters.

    Raises:
        ModelError: these are not the ones that the checkpoint was trained with, or are stored as something else
            (`frozen_storage`).
    """
    require_frozen(module, fingerprint, storage)
    return {**{name: value.detach() for name, value in frozen_parameters(module).items()}, **state}


def require_frozen(module: nn.Module, fingerprint: str, storage: str | None = None) -> None:
    """Compare a module's frozen parameters with those that a checkpoint was trained with; raises as `with_frozen`."""
    found = frozen_fingerprint(module)
    if storage is not None and storage != frozen_storage(module):
        raise ModelError(
            "this checkpoint was trained on weights that were stored in another way",
            where="the checkpoint that training goes on from",
            given=f"frozen weights in {frozen_storage(module)}",
            expected=f"frozen weights in {storage}",
            fix="set model.settings.weights and quantized_parts to what training began with; or delete the stage's "
            "folder that ends in .building to train from the start",
        )
    if found != fingerprint:
        raise ModelError(
            "this checkpoint was trained on another base: its frozen weights are not those of the model here",
            where="the checkpoint that training goes on from",
            given=f"frozen weights {found}",
            expected=f"frozen weights {fingerprint}",
            fix="give the base that training began with, and the same parts frozen; or delete the stage's folder that "
            "ends in .building to train from the start",
        )


def _prefixes(name: str) -> set[str]:
    """A name, and all that it lies in."""
    words = name.split(".")
    return {".".join(words[:end]) for end in range(1, len(words) + 1)}


def frozen_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that do not train, under every name that they have."""
    return {name: value for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}


def frozen_storage(module: nn.Module) -> str:
    """The types that frozen parameters are stored in, with how many tensors each; uint8 holds numbers of 4 bits."""
    kinds = Counter(str(value.dtype).removeprefix("torch.") for value in frozen_parameters(module).values())
    return ", ".join(f"{kind} ({number})" for kind, number in sorted(kinds.items()))


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
