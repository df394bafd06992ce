"""A training step of a model in its real sizes on any number of ranks, without weights, data or devices.

Tensors are torch's fake ones: they have shapes, types and storages, and no numbers. The process group is torch's fake
one: every collective is called and checked by its shapes, and nothing is sent. So the whole step runs as it would on
rank 0 of N - the packed forward, FSDP2's gathering layer by layer, backward, AdamW - and what is held when most is can
be counted. (torch's own trackers leave out the parameters that FSDP ignores, and take six times as long.)

It is what `attention=cascade` does on a GPU (torch's fused kernel knows what it would return), under bf16 autocast. The
row is text: a frozen tower's own activations come and go before those that are counted here. Of 4 bits the kernel is a
stand-in that makes the weight whole for one product, as bitsandbytes does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.attention import row
from benchmarks.live_tensors import LiveTensors
from benchmarks.ours import OPTIM
from mmrlhf.methods.optim import build_optimizer
from mmrlhf.models.attention import SEGMENTS, rounded
from mmrlhf.models.cascade import VARLEN, cascade_attention
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.layout import segmented
from mmrlhf.models.quantized import Int8Linear
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.sharding import Sharding, shard_model
from mmrlhf.models.storage import storage_of

SIZES = Path(__file__).with_name("published_sizes.yaml")
_FUSED = "simulated"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """What a micro-batch holds: a prefix, K responses, and the tokens of each."""

    prefix: int
    responses: int = 4
    tokens: int = 65


def published_sizes() -> dict[str, dict[str, Any]]:
    """The data file: per model its repository, number of parameters and configuration."""
    return yaml.safe_load(SIZES.read_text(encoding="utf-8"))


def config_of(name: str) -> Any:
    """A published model's configuration."""
    given = dict(published_sizes()[name]["config"])
    return AutoConfig.for_model(given.pop("model_type"), **given)


def simulate(config: Any, settings: ModelSettings, size: Row, *, ranks: int = 1, offloaded: bool = False) -> int:
    """Bytes of tensors on rank 0 of N when most are held in a step, after the optimizer's state is there.

    offloaded: shards, their gradients and state would lie on the host, and are not counted.
    """
    batch = row(size.prefix, size.responses, size.tokens)
    layout = segmented(batch)
    with _ranks(ranks) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(config, settings)
        if mesh is not None:
            shard_model(model, mesh, precision=settings.precision, sharding=Sharding(cpu_offload=offloaded))
        optimizer, _ = build_optimizer(model, OPTIM, total_steps=10)

        def step() -> None:
            with autocast(settings, _CPU):
                outputs = model(batch, layout)
            outputs.logprob.sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # the optimizer's state is made by the first
        held = [*model.parameters(), *model.buffers()]
        held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]

        def on_host() -> list[Tensor]:
            shards = [tensor for tensor in held if isinstance(tensor, DTensor)]
            return [*shards, *(shard.grad for shard in shards if shard.grad is not None)]

        with LiveTensors(held, resized=mesh is not None, elsewhere=on_host if offloaded else None) as live:
            step()
    return live.peak


@contextmanager
def _ranks(ranks: int) -> Iterator[Any]:
    """The mesh of N ranks of which this process is the first; None for one."""
    if ranks == 1:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()


def _model(config: Any, settings: ModelSettings) -> PackedModel:
    """The packed model with fake weights, stored as settings say."""
    with torch.device("meta"):
        backbone: PreTrainedModel = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
        _store(backbone, storage_of(backbone, settings))
        model = PackedModel(backbone, settings).train()
    backbone.set_attn_implementation({"text_config": _FUSED})
    _fill(model)
    return model


def _store(backbone: PreTrainedModel, storage: Mapping[str, torch.dtype | str]) -> None:
    for name, kind in storage.items():
        if isinstance(kind, torch.dtype):
            parameter = backbone.get_parameter(name)
            parameter.data = parameter.data.to(kind)
            continue
        old: Any = backbone.get_submodule(name.removesuffix(".weight"))
        new = (_FourBits if kind == "nf4" else _EightBits)(old.in_features, old.out_features, old.bias is not None)
        backbone.set_submodule(name.removesuffix(".weight"), new)


def _fill(model: nn.Module) -> None:
    """Give every parameter and buffer that is on `meta` a storage of its own, those that are tied the same one."""
    made: dict[int, Tensor] = {}
    for module in list(model.modules()):
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                filled = torch.empty(tensor.shape, dtype=tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(filled, tensor.requires_grad) if is_parameter else filled
            setattr(module, name, made[id(tensor)])


class _EightBits(Int8Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale", torch.empty(out_features))


class _FourBits(nn.Linear):
    """Holds what a weight in 4 bits takes, and makes the whole one for each product."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        size = in_features * out_features
        held = size // 2 + size // 64 + size // 4096
        self.weight = nn.Parameter(torch.empty(held, dtype=torch.uint8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        read = input.to(torch.bfloat16)
        return _WholeProduct.apply(read, self.weight, self.out_features, self.bias)


class _WholeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, read: Tensor, weight: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = (out_features, read.shape[-1])
        whole = torch.empty(ctx.shape, dtype=read.dtype)
        return nn.functional.linear(read, whole, None if bias is None else bias.to(read.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype), None, None, None


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    query, key, value = rounded(query, key, value)
    return cascade_attention(query, key, value, kwargs[SEGMENTS], kwargs["scaling"], VARLEN), None


AttentionInterface.register(_FUSED, _attend)
