"""Stage `tiny_encoder`: a random tiny CLIP, so that the embedded world's queries have features without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation.random_encoder import write_random_clip
from mmrlhf.ranges import Natural
from mmrlhf.shards.index import Index

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json",)


def run(out: Path, *, shards: Path, seed: Natural = 0, runtime: Runtime) -> dict[str, Any]:
    """Write `out/model`, a Hugging Face folder.

    Args:
        shards: packed queries whose words it knows.
        seed: of the weights.
    """
    index = Index.load(shards)
    questions = (index.read(row, media=False).prompt.question for row in range(len(index)))
    model = write_random_clip(out / "model", questions, seed=seed)
    words = model.text_model.embeddings.token_embedding.num_embeddings
    return {"parameters": model.num_parameters(), "vocabulary": words}
