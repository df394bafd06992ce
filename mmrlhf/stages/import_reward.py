"""Stage `import_reward`: the published reward model, in the folder form that every other stage reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE
from mmrlhf.models.published_reward import import_released
from mmrlhf.training.fit import MODEL

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json", f"{MODEL}/{CARD_FILE}", f"{MODEL}/{HEAD_FILE}")


def run(out: Path, *, checkpoint: Path, base: Path | str, runtime: Runtime) -> dict[str, Any]:
    """Write `out/model`, a reward model folder.

    Args:
        checkpoint: folder with the published weights (original LLaVA layout, `*.safetensors`).
        base: stock checkpoint of the same architecture, for its config and processor.

    Raises:
        ModelError: keys that are missing or unknown, all of them named.
    """
    card = import_released(checkpoint, base, out / MODEL)
    return {"checkpoint": str(checkpoint), "base": str(base), "critique": card["critique"]}
