"""A large frozen vision tower, sharded: all ranks gather it as a forward begins and let it go before the decoder.

Whether a rank's micro-batch has pictures, and how many calls of the tower they take, differs between ranks; a layer
that gathers itself when it is called would wait for ranks that never call theirs. So all ranks gather the tower
together, once for each forward, whatever is in it. It is whole while pictures are encoded, when no decoder layer has
kept anything yet.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from mmrlhf.models.families import language_layers, parts, vision_layers

# InternViT-6B has 5.5 billion parameters; the towers of other families have 0.3 to 0.7, which every rank can hold.
LARGE_TOWER = 1_000_000_000


class TowerShards:
    """The layers of a tower that `shard_tower` has sharded, perhaps none.

    Attributes:
        parameters: those of them that are sharded.
    """

    def __init__(self, layers: list[FSDPModule]) -> None:
        self._layers = layers
        self.parameters = {each for layer in layers for each in _parameters(layer)}

    def gather_in(self, model: nn.Module, backbone: PreTrainedModel) -> None:
        """Gather the layers before each forward of a sharded model, and let them go before its first decoder layer."""
        if not self._layers:
            return
        first, embedding = language_layers(backbone)[0], backbone.get_input_embeddings()
        model.register_forward_pre_hook(self._gather)
        first.register_forward_pre_hook(self._let_go, prepend=True)
        for module in (first, embedding):
            if isinstance(module, FSDPModule):
                # in backward it would gather ahead what ran before it: on ranks with pictures a layer of the tower
                module.set_modules_to_backward_prefetch([module])

    def _gather(self, module: nn.Module, inputs: Any) -> None:
        for layer in self._layers:
            layer.unshard()

    def _let_go(self, module: nn.Module, inputs: Any) -> None:
        for layer in self._layers:
            layer.reshard()


def tower_parameters(backbone: PreTrainedModel, large: int = LARGE_TOWER) -> list[nn.Parameter]:
    """What of a vision tower is sharded: matrices of its layers, where it is frozen and has `large` parameters."""
    vision = parts(backbone)["vision"]
    if any(parameter.requires_grad for parameter in vision) or sum(p.numel() for p in vision) < large:
        return []
    return [parameter for layer in vision_layers(backbone) for parameter in _parameters(layer)]


def _parameters(layer: Any) -> list[nn.Parameter]:
    """As of the language model: matrices that are no packed bits."""
    return [each for each in layer.parameters() if each.ndim >= 2 and each.is_floating_point()]


def shard_tower(
    backbone: PreTrainedModel,
    mesh: DeviceMesh,
    *,
    large: int,
    mp_policy: MixedPrecisionPolicy,
    offload_policy: OffloadPolicy,
) -> TowerShards:
    """Shard the layers of a vision tower in place where `tower_parameters` says so; else do nothing."""
    wanted = set(tower_parameters(backbone, large))
    layers: list[Any] = list(vision_layers(backbone)) if wanted else []
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=mp_policy,
            offload_policy=offload_policy,
            ignored_params={parameter for parameter in layer.parameters() if parameter not in wanted},
            reshard_after_forward=False,  # it stays whole over all calls of one forward
        )
    return TowerShards(layers)
