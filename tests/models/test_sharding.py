"""What sharding refuses, and that any head works sharded; whole training: tests/methods and tests/stages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_ins.head_kinds import KINDS
from torch import nn

from mmrlhf.errors import ConfigError
from mmrlhf.models.sharding import is_sharded, shard_model


def test_tensor_parallelism_is_refused() -> None:
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2), "data_parallel": SimpleNamespace(size=lambda: 1)}
    model = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        shard_model(model, mesh, precision="float32")  # type: ignore[arg-type]
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
