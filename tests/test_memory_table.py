"""Published sizes, what is predicted for them, and the simulated step that the prediction is held against."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks import memory_table
from benchmarks.memory_table import GB, LONGEST, WAYS, footprint_of, most_visual_tokens, predicted
from benchmarks.simulation import Row, config_of, published_sizes, simulate
from mmrlhf.models.step_bytes import Footprint
from mmrlhf.training.room import RESERVE

# A model of 1B parameters, 24 layers and untied embeddings that trains in full; made by hand.
MADE_UP = Footprint(
    sharded=900_000_000, replicated=100_000_000, compact=0.0, compact_sharded=0.0, mapped=0.0, compact_root=0.0,
    tower=0.0, trainable_sharded=900_000_000, trainable_replicated=0,
    trainable_head=100_000_000, root=100_000_000, embedding=100_000_000, tied=False, saved_per_token=100_000.0,
    recomputed_per_token=60_000.0, layer_per_token=60_000.0, adapter_per_token=0.0, projector_per_token=0.0,
    cache_per_token=1000.0, layers=24,
    vocabulary=100_000, logprob_chunk=1024, bf16=True, masked=False,
)  # fmt: skip


def test_what_fits_is_the_last_that_fits() -> None:
    """One token more does not; more ranks and larger cards never fit less; and what cannot fit says so."""
    found = most_visual_tokens(MADE_UP, 20 * GB, 1)
    assert found is not None and 0 < found < LONGEST
    assert RESERVE * predicted(MADE_UP, found, 1) <= 20 * GB < RESERVE * predicted(MADE_UP, found + 1, 1)
    assert most_visual_tokens(MADE_UP, 10 * GB, 1) is None
    assert most_visual_tokens(MADE_UP, 141 * GB, 8) == LONGEST
    assert (most_visual_tokens(MADE_UP, 20 * GB, 8) or 0) > found


@pytest.mark.parametrize(("change", "bytes_more"), [("masked", 2), ("tied", 2)])
def test_masks_and_tied_heads_cost_what_they_hold(change: str, bytes_more: int) -> None:
    """A mask of labels x row in bf16; a head that is the embedding is gathered in float32, gradient and all."""
    other = dataclasses.replace(MADE_UP, **{change: True})
    more = predicted(other, 20000, 8) - predicted(MADE_UP, 20000, 8)
    wanted = 2 * 260 * (20000 + 100 + 260) if change == "masked" else 2 * bytes_more * 100_000_000
    assert more == pytest.approx(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", published_sizes())
def test_a_model_of_the_published_sizes_has_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(name))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(published_sizes()[name]["parameters"], rel=0.002)


def shallow(name: str) -> Any:
    """A published model with four decoder layers."""
    config = config_of(name)
    config.text_config.num_hidden_layers = 4
    config.text_config.layer_types = ["full_attention"] * 4
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way", "ranks"),
    [
        ("internvl3_1b", "full", 1),
        ("internvl3_1b", "LoRA", 8),
        ("llava_onevision_0.5b", "full", 8),
        ("qwen2_5_vl_3b", "QLoRA", 1),
        ("qwen2_5_vl_72b", "LoRA", 64),
    ],
)
def test_a_simulated_step_is_predicted_within_a_tenth(name: str, way: str, ranks: int) -> None:
    """Untied and tied heads, whole and sharded: also every shape and every collective at these widths."""
    config = shallow(name)
    peak = simulate(config, WAYS[way], Row(4000), ranks=ranks)
    found = footprint_of(config, WAYS[way])
    guess = predicted(found, 3900, ranks) - found.projector_per_token * 3900
    assert guess == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way", "ranks"), [("internvl3_1b", "full", 8), ("internvl3_1b", "LoRA", 2)])
def test_a_simulated_step_with_shards_on_the_host_is_predicted_within_a_tenth(name: str, way: str, ranks: int) -> None:
    """What stays on the device: whole parameters, what is gathered, activations; much less than without."""
    config = shallow(name)
    found = footprint_of(config, WAYS[way])
    peak = simulate(config, WAYS[way], Row(4000), ranks=ranks, offloaded=True)
    guess = found.predict(row_tokens=4260, label_tokens=260, num_shards=ranks, offloaded=True)["total"]
    assert guess == pytest.approx(peak, rel=0.1)
    assert peak < 0.9 * found.predict(row_tokens=4260, label_tokens=260, num_shards=ranks)["total"]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    memory_table.main(["--models", "internvl3_1b", "--ways", "LoRA", "--ranks", "1"])
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert head.count("|") == row.count("|") == 7 and row.startswith("| OpenGVLab/InternVL3-1B-hf | LoRA |")
