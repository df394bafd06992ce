"""Queries criticised and scored per second: ours, and batched `generate` of transformers at its best batch size.

    python -m benchmarks.scoring_rate
    python -m benchmarks.scoring_rate --queries 2 --tokens 8 --batches 1 4        # to try it out

The model is a LLaVA-OneVision of about 9M parameters with random weights; a query has one picture of 512 x 512 pixels
and K = 5 responses, every critique has 64 tokens. Ours: all responses of all queries at once. Batched: the stock
model's own `generate` on batches of (query, response) rows, each with its picture and prompt, filled up on the left;
then these responses with their critiques are scored, each in a row of its own. Every batch size is tried once, and the
best is what ours takes turns with, as does one response at a time. All ways must write the same critiques, which is
checked first. Ratios are medians over rounds, of wall time and of the process's CPU time.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import in_turn, median_ratio, report
from benchmarks.workload import WORDS, numbered
from mmrlhf.conversation import Conversation
from mmrlhf.inference.passes import decode_text
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.inference.verdicts import Verdict
from mmrlhf.models.families import media_arguments
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.types import Media, PreferenceGroup, Response

NUM_RESPONSES = 5
SIZE = TinySize(hidden=256, layers=4, heads=4, vision_hidden=128, vision_layers=4, image=256, patch=16, vocabulary=2000)


def make_query(num_responses: int) -> PreferenceGroup:
    """A query with one picture and responses of about sixty words."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)).save(buffer, "PNG")
    texts = [" ".join(rng.choice(WORDS, 60)) for _ in range(num_responses)]
    responses = tuple(Response(text, rank=rank) for rank, text in enumerate(texts, 1))
    media = (Media("image", ("0.png",), (buffer.getvalue(),)),)
    asked = Conversation.about("describe the picture", [each.slot for each in media])
    return PreferenceGroup("query", asked, responses, media)


def build_judge(folder: str, critique_tokens: int) -> RewardModel:
    """A random reward model whose critiques never end early."""
    build_tiny("llava_onevision", folder, texts=[" ".join(WORDS)] * 20, size=SIZE)
    backbone, processor = load_backbone(folder, ModelSettings())
    head = build_head("linear", SIZE.hidden)
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(0))
    critiques = CritiqueSettings(max_tokens=critique_tokens)
    model = PackedModel(backbone, ModelSettings(), head)
    template = CritiqueTemplate("full", "judge :")
    judge = RewardModel(model, processor, template=template, media=MediaSettings(), critiques=critiques)
    output = backbone.get_output_embeddings()
    assert output is not None
    with torch.no_grad():
        # A logit of 0 is never the largest of thousands: no critique ends early, and both ways write as many tokens.
        output.weight[list(judge.encoder.end_tokens)] = 0.0
    return judge


@torch.inference_mode()
def batched(judge: RewardModel, queries: Sequence[PreferenceGroup], size: int) -> list[tuple[float, str]]:
    """(reward, critique) of every response of every query, `size` at a time by the stock model's `generate`."""
    alone = [replace(query, key=f"{query.key}-{number}", responses=(response,))
             for query in queries for number, response in enumerate(query.responses)]  # fmt: skip
    found = []
    for start in range(0, len(alone), size):
        written = generate(judge, alone[start : start + size])
        given = [
            replace(each, responses=(replace(each.responses[0], critiques={"full": critique}),))
            for each, critique in zip(alone[start : start + size], written, strict=True)
        ]
        verdicts = judge.score_groups(given, critique_source="given")
        found += [(verdict.reward, critique) for (verdict,), critique in zip(verdicts, written, strict=True)]
    return found


def generate(judge: RewardModel, alone: Sequence[PreferenceGroup]) -> list[str]:
    """Critiques of queries with one response each, written together by the stock model."""
    backbone: Any = judge.model.backbone
    contexts = [judge.encoder.context(each) for each in alone]
    rows = [torch.cat([context.prefix_ids, context.branches[0].ids]) for context in contexts]
    longest, filler = max(map(len, rows)), judge.processor.tokenizer.pad_token_id
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=filler) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    written = backbone.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=judge.critiques.max_tokens,
        do_sample=False,
        eos_token_id=judge.encoder.end_tokens,
        **media_arguments(backbone, ids, [context.media for context in contexts], [1] * len(contexts)),
    )
    ends = judge.encoder.end_tokens
    kept = [[token for token in row if token not in ends] for row in written[:, longest:].tolist()]
    return [decode_text(judge.processor, row) for row in kept]


def check_agreement(verdicts: Sequence[Verdict], others: Sequence[tuple[float, str]]) -> None:
    """Both ways must have written the same critiques and come to the same rewards."""
    for verdict, (reward, critique) in zip(verdicts, others, strict=True):
        if verdict.critique != critique or abs(verdict.reward - reward) > 1e-3:
            raise RuntimeError(f"the two ways disagree: {verdict} and {(reward, critique)}")


def measure(options: argparse.Namespace) -> None:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        judge = build_judge(folder, options.tokens)
    query = make_query(NUM_RESPONSES)
    queries = [numbered(query, n) for n in range(options.queries)]
    verdicts = judge.score_groups(queries)
    of_first = verdicts[0]
    tried = {}
    for size in options.batches:
        started = time.process_time()
        check_agreement([each for own in verdicts for each in own], batched(judge, queries, size))
        tried[size] = (time.process_time() - started) / options.queries
    best = min(tried, key=lambda size: tried[size])
    ways = {
        "ours": partial(judge.score_groups, queries),
        "batched": partial(batched, judge, queries, best),
        "alone": partial(batched, judge, queries[:1], 1),
        "critiques": lambda: judge.critic.write(queries, [judge.encoder.context(query) for query in queries]),
    }
    found = in_turn(ways, options.rounds, warm_up=False)
    number = {name: 1 if name == "alone" else options.queries for name in ways}
    wall, cpu = ({name: [s / number[name] for s in getattr(timing, kind)] for name, timing in found.items()}
                 for kind in ("wall", "cpu"))  # fmt: skip
    report(
        benchmark="scoring_rate",
        responses=NUM_RESPONSES,
        queries_together=options.queries,
        critique_tokens=[verdict.critique_tokens for verdict in of_first],
        prefix_tokens=len(judge.encoder.context(query).prefix_ids),
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        cpu_seconds_of_a_query_by_batch_size={str(size): round(seconds, 2) for size, seconds in tried.items()},
        best_batch_size=best,
        queries_per_second=1 / median(wall["ours"]),
        batched_queries_per_second=1 / median(wall["batched"]),
        one_at_a_time_queries_per_second=1 / median(wall["alone"]),
        times_faster_than_batched=median_ratio(wall["batched"], wall["ours"]),
        times_faster_than_batched_by_cpu_time=median_ratio(cpu["batched"], cpu["ours"]),
        times_faster_than_one_at_a_time=median_ratio(wall["alone"], wall["ours"]),
        times_faster_than_one_at_a_time_by_cpu_time=median_ratio(cpu["alone"], cpu["ours"]),
        share_of_time_writing_critiques=median(wall["critiques"]) / median(wall["ours"]),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=8, help="scored together")
    parser.add_argument("--tokens", type=int, default=64, help="of a critique")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 5, 10, 20, 40], help="sizes that are tried")
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
