"""How many visual tokens fit: published models, ways of training, cards, ranks; and predictions beside simulations.

    python -m benchmarks.memory_table                                       # the table of docs/memory.md
    python -m benchmarks.memory_table --models qwen2_5_vl_7b
    python -m benchmarks.memory_table --simulate --models internvl3_1b --ways LoRA --ranks 1 8 --visual 8000

The table is what `plan=true` says: a query with a picture, a prompt of 100 tokens and four responses of 65 fits where
1.25 times the predicted peak is in the card's memory. Layers are recomputed, numbers are bf16, the tower is frozen, the
reference is cached, the language model is sharded over the ranks (FSDP2). With `--simulate` a JSON line for each point
says what a step of fake tensors holds (`benchmarks.simulation`); it takes minutes for the largest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure import report
from benchmarks.simulation import Row, config_of, published_sizes, simulate
from mmrlhf.models.footprint import footprint
from mmrlhf.models.settings import ModelSettings
from mmrlhf.models.step_bytes import Footprint
from mmrlhf.training.room import RESERVE

GB = 10**9
CARDS = (24, 48, 80, 141)
RANKS = (1, 8, 64)
PROMPT, RESPONSES, TOKENS = 100, 4, 65
# what the models have positions for
LONGEST = 32768
_COMMON: dict[str, Any] = {"precision": "bf16", "gradient_checkpointing": True, "attention": "cascade"}
WAYS = {
    "full": ModelSettings(**_COMMON),
    "LoRA": ModelSettings(**_COMMON, weights="bf16", language="lora", projector="frozen"),
    "QLoRA": ModelSettings(**_COMMON, weights="nf4", language="lora", projector="frozen"),
}


def footprint_of(config: Any, settings: ModelSettings) -> Footprint:
    """What a model of this configuration needs."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return footprint(folder, settings)


def predicted(found: Footprint, visual: int, ranks: int) -> float:
    """Bytes of the peak of a step on one query, as `plan=true` predicts it."""
    labels = RESPONSES * TOKENS
    memory = found.predict(
        row_tokens=PROMPT + visual + labels, label_tokens=labels, visual_tokens=visual, num_shards=ranks
    )
    return memory["total"]


def most_visual_tokens(found: Footprint, card: float, ranks: int) -> int | None:
    """The most visual tokens of a query that fits into a card's bytes, up to `LONGEST`; None where no text fits."""
    if RESERVE * predicted(found, 0, ranks) > card:
        return None
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if RESERVE * predicted(found, middle, ranks) <= card else (low, middle - 1)
    return low


def table(models: Sequence[str], ways: Sequence[str], ranks: Sequence[int]) -> str:
    """Markdown: a row for each model and way of training, a column for each card and number of ranks."""
    columns = [(card, number) for card in CARDS for number in ranks]
    lines = ["| model | trains | " + " | ".join(f"{card} GB x {number}" for card, number in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for name in models:
        config = config_of(name)
        for way in ways:
            found = footprint_of(config, WAYS[way])
            cells = [_cell(found, card * GB, number) for card, number in columns]
            lines.append(f"| {published_sizes()[name]['repository']} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Footprint, card: float, ranks: int) -> str:
    """A number of tokens, or in brackets the GB that a query without a picture would want of the card."""
    most = most_visual_tokens(found, card, ranks)
    if most is None:
        return f"({RESERVE * predicted(found, 0, ranks) / GB:.0f})"
    return "all" if most == LONGEST else f"{most:,}"


def simulations(models: Sequence[str], ways: Sequence[str], ranks: Sequence[int], visual: int) -> Iterator[dict]:
    """Predicted beside simulated bytes of each point."""
    for name in models:
        config = config_of(name)
        for way in ways:
            found = footprint_of(config, WAYS[way])
            for number in ranks:
                began = time.monotonic()
                peak = simulate(config, WAYS[way], Row(PROMPT + visual, RESPONSES, TOKENS), ranks=number)
                # fake rows are text: nothing is kept in the projector
                guess = predicted(found, visual, number) - found.projector_per_token * visual
                yield {
                    "model": name, "way": way, "ranks": number, "visual": visual, "simulated_gb": peak / GB,
                    "predicted_gb": guess / GB, "predicted_over_simulated": guess / peak,
                    "seconds": time.monotonic() - began,
                }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or a JSON line for each simulated point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=published_sizes(), default=list(published_sizes()))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--visual", type=int, default=8000, help="of --simulate")
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args(arguments)
    if not options.simulate:
        print(table(options.models, options.ways, options.ranks))
        return
    for found in simulations(options.models, options.ways, options.ranks, options.visual):
        report(benchmark="memory_table", **found)


if __name__ == "__main__":
    main()
