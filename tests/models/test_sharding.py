"""What sharding refuses, and that any head works sharded; whole training: tests/methods and tests/stages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from stand_ins.head_kinds import KINDS, build_with_head
from stand_ins.tiny_models import image, responses
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from mmrlhf.errors import ConfigError, ModelError
from mmrlhf.models.forward import autocast
from mmrlhf.models.sharding import is_sharded, shard_model
from mmrlhf.models.trained_state import frozen_fingerprint, frozen_parameters, require_frozen
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
