"""Started by torchrun: log-probabilities and gradients of a sharded model beside those of a whole one, on every rank.

Usage: sharded_heads.py CHECKPOINT KIND... (kinds of `head_kinds`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from stand_ins.head_kinds import build_with_head
from stand_ins.tiny_models import image, responses
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mmrlhf.models.forward import PackedModel
from mmrlhf.models.sharding import is_sharded, shard_model
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import PreferenceGroup

GROUPS = [
    PreferenceGroup("one", "what ?", responses("a red circle", "a blue square", "no"), (image(60, 50),)),
    PreferenceGroup("text", "why ?", responses("fine answer", "b")),
]


def train(model: PackedModel, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities (R,) and whole gradients of a fixed mix of them."""
    logprob = model(batch).logprob
    (logprob @ torch.linspace(-1, 1, len(logprob))).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logprob.detach(), {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


def compare(folder: Path, kind: str) -> None:
    """Both ranks run the same batch, so that averaged gradients are those of one process."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found = {}
    for way in ("whole", "sharded"):
        model, encoder = build_with_head(kind, folder, logprob_chunk=3)
        if way == "sharded":
            shard_model(model, mesh, precision="float32")
            head = next(p for n, p in model.named_parameters() if "lm_head" in n or "embed_tokens" in n)
            assert is_sharded(model) and isinstance(head, DTensor)
        found[way] = train(model, pack_groups([encoder(group) for group in GROUPS]))
    torch.testing.assert_close(found["sharded"], found["whole"], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for kind in sys.argv[2:]:
        compare(Path(sys.argv[1]), kind)
    torch.distributed.destroy_process_group()
