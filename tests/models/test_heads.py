"""Score heads compute in float32 whatever the precision around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins.built_models import build

from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import HEADS, build_head
from mmrlhf.tensors import ResponseOutputs


@pytest.mark.parametrize("kind", HEADS)
def test_close_states_get_distinct_rewards_under_autocast(kind: str, tiny_folders: dict[str, Path]) -> None:
    """200 hidden states around one point: in bfloat16 about half of them would share a reward."""
    torch.manual_seed(0)
    plain, _ = build(tiny_folders["llava_onevision"], precision="bf16")
    head = build_head(kind, 64)
    torch.nn.init.normal_(head.out.weight, std=0.1)
    model = PackedModel(plain.backbone, plain.settings, head).eval()
    hidden = 1.0 + 0.05 * torch.randn(200, 64)
    outputs = ResponseOutputs(torch.zeros(200), torch.ones(200), hidden, torch.zeros(200))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.score(outputs)
    assert found.dtype == torch.float32
    assert len(found.unique()) > 195
    assert torch.equal(found, model.score(outputs))
