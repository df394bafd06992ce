"""Stage `mix`: several packed shard sets as one, for training on a mixture of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.shards.union import write_mixture

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("manifest.json", "index.parquet")


def run(out: Path, *, sets: Mapping[str, str], runtime: Runtime) -> dict[str, Any]:
    """Write a folder that reads like one set of shards; the sets stay where they are.

    Args:
        sets: name -> folder of shards; the names are those of `data.mixing.weights`.

    Returns:
        Queries of each set, and the digest of the whole.

    Raises:
        ConfigError: no sets, or impossible names.
        DataError: a folder that is no set of shards, or a damaged one.
    """
    index = write_mixture(sets, out)
    groups = Counter(index.set_names().tolist())
    return {"groups": len(index), "sets": {name: groups[name] for name in sets}, "digest": index.digest}
