"""Queries criticised and scored per second: all responses of many queries at once, and one response at a time.

    python -m benchmarks.scoring_rate

The model is a LLaVA-OneVision of about 9M parameters with random weights; a query has one picture of 512 x 512 pixels
and K = 5 responses, every critique has 64 tokens. One at a time: the stock model's own `generate` for each response,
then a forward of that response with its critique for the score. Both ways write the same critiques, which is checked
first; then they take turns, and ratios are medians over rounds.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

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

NUM_RESPONSES, NUM_QUERIES, CRITIQUE_TOKENS, ROUNDS = 5, 8, 64, 3
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


def build_judge(folder: str) -> RewardModel:
    """A random reward model whose critiques never end early."""
    build_tiny("llava_onevision", folder, texts=[" ".join(WORDS)] * 20, size=SIZE)
    backbone, processor = load_backbone(folder, ModelSettings())
    head = build_head("linear", SIZE.hidden)
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(0))
    critiques = CritiqueSettings(max_tokens=CRITIQUE_TOKENS)
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
def one_at_a_time(judge: RewardModel, query: PreferenceGroup) -> list[tuple[float, str]]:
    """(reward, critique) of every response, each generated and scored by itself with the stock model's `generate`."""
    found = []
    backbone = judge.model.backbone
    for response in query.responses:
        alone = replace(query, responses=(response,))
        context = judge.encoder.context(alone)
        ids = torch.cat([context.prefix_ids, context.branches[0].ids])[None]
        written = backbone.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=CRITIQUE_TOKENS,
            do_sample=False,
            eos_token_id=judge.encoder.end_tokens,
            **{name: value for name, value in media_arguments(backbone, ids, [context.media], [1]).items()},
        )
        kept = [token for token in written[0, ids.shape[1] :].tolist() if token not in judge.encoder.end_tokens]
        critique = decode_text(judge.processor, kept)
        given = replace(alone, responses=(replace(response, critiques={"full": critique}),))
        (verdict,) = judge.score_groups([given], critique_source="given")[0]
        found.append((verdict.reward, critique))
    return found


def check_agreement(verdicts: Sequence[Verdict], alone: Sequence[tuple[float, str]]) -> None:
    """Both ways must have written the same critiques and come to the same rewards."""
    for verdict, (reward, critique) in zip(verdicts, alone, strict=True):
        if verdict.critique != critique or abs(verdict.reward - reward) > 1e-3:
            raise RuntimeError(f"the two ways disagree: {verdict} and {(reward, critique)}")


def main() -> None:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        judge = build_judge(folder)
    query = make_query(NUM_RESPONSES)
    queries = [numbered(query, n) for n in range(NUM_QUERIES)]
    verdicts = judge.score_groups(queries)[0]
    check_agreement(verdicts, one_at_a_time(judge, queries[0]))
    ways = {
        "together": lambda: judge.score_groups(queries),
        "alone": lambda: one_at_a_time(judge, queries[0]),
        "critiques": lambda: judge.with_critiques(queries),
    }
    found = in_turn(ways, ROUNDS, warm_up=False)
    together, critiques = ([s / NUM_QUERIES for s in found[name].wall] for name in ("together", "critiques"))
    report(
        benchmark="scoring_rate",
        responses=NUM_RESPONSES,
        queries_together=NUM_QUERIES,
        critique_tokens=[verdict.critique_tokens for verdict in verdicts],
        prefix_tokens=len(judge.encoder.context(query).prefix_ids),
        threads=torch.get_num_threads(),
        rounds=ROUNDS,
        queries_per_second=1 / median(together),
        one_at_a_time_queries_per_second=1 / median(found["alone"].wall),
        times_faster=median_ratio(found["alone"].wall, together),
        times_faster_by_cpu_time=median_ratio(found["alone"].cpu, [s / NUM_QUERIES for s in found["together"].cpu]),
        share_of_time_writing_critiques=median(critiques) / median(together),
    )


if __name__ == "__main__":
    main()
