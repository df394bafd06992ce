"""What sharding refuses, and that any head works sharded; whole training: tests/methods and tests/stages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from stand_ins.built_models import build
from stand_ins.head_kinds import KINDS, build_with_head
from stand_ins.tiny_models import image, responses
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.methods.optim import clip_gradients
from mmrlhf.models.families import language_layers, parts, vision_layers
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.sharding import Sharding, is_sharded, move_whole, shard_model, sharded_strategy
from mmrlhf.models.trained_state import frozen_fingerprint, frozen_parameters, require_frozen
from mmrlhf.tensors import ResponseOutputs
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup


def test_tensor_parallelism_is_refused() -> None:
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2), "data_parallel": SimpleNamespace(size=lambda: 1)}
    model = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        shard_model(model, mesh, precision="float32")  # type: ignore[arg-type]
    assert not is_sharded(model)


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    """A process group of this process alone: sharding casts as it does among many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "gemma3"])
def test_a_sharded_bf16_model_says_to_the_last_bit_what_a_whole_one_does(
    family: str, kind: str, tiny_folders: dict[str, Path], one_rank: DeviceMesh
) -> None:
    """Embedding, norms, residual stream: nothing is rounded that autocast leaves alone, values and gradients."""
    groups = [
        PreferenceGroup("one", "what ?", responses("a red circle", "a blue square", "no"), (image(60, 50),)),
        PreferenceGroup("text", "why ?", responses("fine answer", "b")),
    ]
    found = []
    for sharded in (False, True):
        model, encoder = build_with_head(kind, tiny_folders[family], precision="bf16", logprob_chunk=3)
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:  # norms of ones and biases of zeros would be exact in any precision
                nn.init.normal_(parameter, 1.0, 0.1, generator=torch.Generator().manual_seed(number))
        if sharded:
            shard_model(model, one_rank, precision="bf16")
        with autocast(model.settings, torch.device("cpu")):
            outputs = model(pack_groups([encoder(group) for group in groups]))
        (outputs.logprob @ torch.linspace(-1, 1, len(outputs.logprob))).backward()
        norm = model.backbone.get_input_embeddings().weight.grad
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        found.append((outputs.logprob.detach(), outputs.hidden.detach(), norm))
    whole, other = found
    assert whole[1].dtype == other[1].dtype == torch.float32
    assert torch.equal(whole[0], other[0]) and torch.equal(whole[1], other[1])
    if whole[2] is not None:
        torch.testing.assert_close(other[2], whole[2], rtol=2e-2, atol=2e-3 * float(whole[2].abs().max()))


def test_what_is_frozen_has_one_name_whole_and_sharded(tiny_folders: dict[str, Path], one_rank: DeviceMesh) -> None:
    """So a checkpoint of shards says whose base it goes on from, for any number of ranks; another base is refused."""
    model, _ = build_with_head("tied", tiny_folders["qwen2_5_vl"], language="lora", lora_rank=2)
    name = frozen_fingerprint(model)
    shard_model(model, one_rank, precision="float32")
    assert any(isinstance(value, DTensor) for value in frozen_parameters(model).values())
    assert frozen_fingerprint(model) == name
    require_frozen(model, name)
    with torch.no_grad():
        next(value for value in frozen_parameters(model).values() if isinstance(value, DTensor)).add_(1e-3)
    with pytest.raises(ModelError, match="trained on another base"):
        require_frozen(model, name)


def mixed_groups() -> list[PreferenceGroup]:
    """A query with a picture, one with two, and one without."""
    return [
        PreferenceGroup("one", "what ?", responses("a red circle", "a blue square", "no"), (image(60, 50),)),
        PreferenceGroup("two", "which ?", responses("red", "the blue one"), (image(40, 50), image(60, 30))),
        PreferenceGroup("text", "why ?", responses("fine answer", "b")),
    ]


def say(model: PackedModel, encoder: Encoder, groups: Sequence[PreferenceGroup]) -> tuple[ResponseOutputs, float]:
    """What a model says of groups, and the norm of its gradient."""
    model.zero_grad()
    with autocast(model.settings, torch.device("cpu")):
        outputs = model(pack_groups([encoder(group) for group in groups]))
    (outputs.logprob @ torch.linspace(-1, 1, len(outputs.logprob))).backward()
    norms = [whole(p.grad).norm() for p in model.parameters() if p.grad is not None]
    return outputs, float(torch.stack(norms).norm())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


LORA = {"language": "lora", "projector": "frozen", "lora_rank": 4, "precision": "bf16"}


@pytest.mark.parametrize("weights", ["bf16", "nf4", "int8"])
def test_frozen_weights_in_bf16_are_split_and_packed_bits_are_not(
    weights: str, tiny_folders: dict[str, Path], one_rank: DeviceMesh
) -> None:
    """To the last bit what the whole model says; with adapters, which are split in float32."""
    found = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model, encoder = build(tiny_folders["qwen2_5_vl"], weights=weights, **LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        if sharded:
            shard_model(model, one_rank, precision="bf16")
        found.append(say(model, encoder, mixed_groups()))
    (plain, norm), (split, other) = found
    assert torch.equal(split.logprob, plain.logprob) and other == pytest.approx(norm, rel=1e-2)
    language = {name: p for name, p in model.named_parameters() if "language_model" in name and p.ndim >= 2}
    kinds = {(str(p.dtype), "lora" in name, isinstance(p, DTensor)) for name, p in language.items()}
    packed = {"nf4": {("torch.uint8", False, False)}, "int8": {("torch.int8", False, False)}}.get(weights, set())
    assert kinds == {("torch.float32", True, True), ("torch.bfloat16", False, True)} | packed


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl", "llava_onevision"])
def test_a_large_frozen_tower_is_split_and_says_the_same(
    family: str, tiny_folders: dict[str, Path], one_rank: DeviceMesh
) -> None:
    """It is whole while pictures are encoded and let go before the decoder, with pictures and without."""
    plain, encoder = build(tiny_folders[family])
    split, _ = build(tiny_folders[family])
    trained, _ = build(tiny_folders[family], vision="full")
    for model in (split, trained):
        shard_model(model, one_rank, precision="float32", sharding=Sharding(large_tower=1))
    towers = [sum(isinstance(p, DTensor) for p in parts(model.backbone)["vision"]) for model in (plain, split, trained)]
    assert towers[0] == towers[2] == 0 < towers[1], "a tower that trains is on every rank"
    seen: list[set[bool]] = []
    layers = [layer for layer in vision_layers(split.backbone) if isinstance(layer, FSDPModule)]
    language_layers(split.backbone)[1].register_forward_pre_hook(
        lambda *_: seen.append({isinstance(p, DTensor) for layer in layers for p in layer.parameters() if p.ndim >= 2})
    )
    for groups in (mixed_groups(), mixed_groups()[2:]):
        (expected, norm), (outputs, other) = say(plain, encoder, groups), say(split, encoder, groups)
        assert torch.equal(outputs.logprob, expected.logprob) and other == pytest.approx(norm, rel=1e-5)
    assert seen == [{True}, {True}], "shards again before the second decoder layer"
    with torch.no_grad():
        assert torch.equal(split(pack_groups([encoder(mixed_groups()[0])])).logprob,
                           plain(pack_groups([encoder(mixed_groups()[0])])).logprob)  # fmt: skip


def test_offloaded_shards_say_the_same_and_stay_on_the_host(
    tiny_folders: dict[str, Path], one_rank: DeviceMesh
) -> None:
    plain, encoder = build(tiny_folders["internvl"])
    offloaded, _ = build(tiny_folders["internvl"])
    shard_model(offloaded, one_rank, precision="float32", sharding=Sharding(cpu_offload=True))
    (expected, norm), (outputs, other) = say(plain, encoder, mixed_groups()), say(offloaded, encoder, mixed_groups())
    assert torch.equal(outputs.logprob, expected.logprob) and other == pytest.approx(norm, rel=1e-5)
    trained = [parameter for parameter in offloaded.parameters() if parameter.requires_grad]
    assert float(clip_gradients(trained, 0.5 * norm)) == pytest.approx(norm, rel=1e-5)
    clipped = torch.stack([whole(p.grad).norm() for p in trained if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(0.5 * norm, rel=1e-4)
    move_whole(offloaded, torch.device("meta"))
    places = {isinstance(p, DTensor): p.device.type for p in offloaded.parameters()}
    assert places == {True: "cpu", False: "meta"} and offloaded.device.type == "meta"
    assert {buffer.device.type for buffer in offloaded.buffers()} == {"meta"}


def test_groups_that_share_a_model_come_out_even(tiny_folders: dict[str, Path], one_rank: DeviceMesh) -> None:
    model, _ = build(tiny_folders["internvl"])
    with pytest.raises(ConfigError, match="trainer.shard_size"):
        shard_model(model, one_rank, precision="float32", sharding=Sharding(shard_size=2))
    with pytest.raises(ConfigError, match="shard_size=3, 8 devices"):
        sharded_strategy(devices=4, num_nodes=2, accelerator="cpu", shard_size=3)


def test_a_row_for_each_response_is_refused(tiny_folders: dict[str, Path], one_rank: DeviceMesh) -> None:
    """A rank with fewer queries in its micro-batch would leave the others waiting for ever."""
    model, _ = build(tiny_folders["internvl"], layout="rows")
    with pytest.raises(ConfigError, match="layout=rows with a sharded model"):
        shard_model(model, one_rank, precision="float32")
    assert not is_sharded(model)


@pytest.mark.slow
def test_sharded_heads_say_what_whole_ones_do(tiny_folders: dict[str, Path]) -> None:
    """Tied, untied and adapted heads, sharded over two processes (gloo): log-probabilities and gradients."""
    script, paths = Path(__file__).parents[1] / "stand_ins" / "sharded_heads.py", Path(__file__).parents
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    path = os.pathsep.join(str(folder) for folder in paths[:3])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [str(tiny_folders["qwen2_5_vl"]), *KINDS]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
