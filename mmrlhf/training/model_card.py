"""The card of a trained model: README.md in its folder, from what the stage that trained it knows.

It says what the model was made from and how, what was measured on held-out queries, under which licences, and how to
load it. A folder travels, so nothing in its card names a place on the machine that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from mmrlhf.chain.provenance import git_commit, versions
from mmrlhf.files import expanded
from mmrlhf.models.export import save_policy
from mmrlhf.models.promises import CARD_FILE
from mmrlhf.models.weight_files import POLICY_FILE, read_json
from mmrlhf.shards.index import Index
from mmrlhf.shards.origins import MOST_NAMED, Origins, read_origins
from mmrlhf.summaries.rankings import Accuracy
from mmrlhf.summaries.trainings import TrainingSummary
from mmrlhf.text import markdown_table, markdown_text, one_line
from mmrlhf.training.settings import TrainSettings
from mmrlhf.training.workbench import Workbench

CARD = "README.md"
# folder of the adapters beside the merged model
ADAPTER = "adapter"
Kind = Literal["policy", "reward model"]
_NAMED = ("mmrlhf", "torch", "transformers")
_LOAD = {
    "policy": """from mmrlhf import Policy

policy = Policy.from_pretrained("FOLDER_OR_HUB_ID")
print(policy.answer("picture.jpg", "What is in the picture?"))""",
    "reward model": """from mmrlhf import RewardModel

judge = RewardModel.from_pretrained("FOLDER_OR_HUB_ID")
for reward, critique in judge.score("picture.jpg", "What is in the picture?", ["A cat.", "Two dogs."]):
    print(reward, critique)""",
}


def export_policy(
    bench: Workbench,
    folder: Path,
    *,
    start: str | Path,
    method: Mapping[str, Any],
    training: TrainSettings,
    summary: TrainingSummary,
    state: Any,
) -> None:
    """Write a trained policy with its card; in the number type of the checkpoint that it started from.

    Arguments as in `write_card` and `save_policy`.
    """
    facts = {"media": asdict(training.media), "base": base_model(start)}
    for place, as_adapters in exported(folder, training):
        save_policy(
            bench.model, bench.processor, place, card=facts, state=state, dtype=bench.dtype, base=start,
            as_adapters=as_adapters,
        )  # fmt: skip
        write_card(place, "policy", bench, start=start, method=method, training=training, summary=summary)


def exported(folder: Path, training: TrainSettings) -> list[tuple[Path, bool]]:
    """The folders that a trained model is written into, and whether as adapters: `TrainSettings.save`."""
    if training.save == "both":
        return [(folder, False), (folder.with_name(ADAPTER), True)]
    return [(folder, training.save == "adapter")]


def write_card(
    folder: Path,
    kind: Kind,
    bench: Workbench,
    *,
    start: str | Path,
    method: Mapping[str, Any],
    training: TrainSettings,
    summary: TrainingSummary,
) -> None:
    """Write the card of a model that was just trained into its folder.

    Args:
        bench: the model and the packed queries.
        start: the checkpoint that it started from.
        method: what was trained, e.g. the objective and its settings.
        summary: what the stage measured.
    """
    base, index, family = base_model(start), bench.index, bench.model.backbone.config.model_type
    facts = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["mmrlhf", *kind.split()]}
    facts |= {"base_model": base} if base else {}
    # what cannot be read was left out of the training, too
    origins = read_origins(index, damage=True)
    parts = [
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n# {kind.capitalize()}, {family}",
        f"Trained with [mmrlhf](https://arxiv.org/abs/2502.10391), from {_named(base, family)}.",
        f"## Data\n\n{_data(index, origins, summary)}",
        f"## Method\n\n{_yaml(method)}",
        f"## Measured on held-out queries\n\n{figures_table(summary.heldout, summary.validation)}",
        f"## Settings\n\n{_yaml(asdict(training))}",
        f"## Made by\n\n{_yaml(_made_by())}",
        f"## Licence\n\n{_licence(origins, base)}",
        f"## Load it\n\n```python\n{_LOAD[kind]}\n```",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def base_model(start: str | Path) -> str | None:
    """The hub id that a checkpoint goes back to: its own name, or what the folder that an earlier stage wrote says."""
    if not expanded(start).exists():
        return str(start)
    for name in (POLICY_FILE, CARD_FILE):
        file = Path(start) / name
        if file.is_file():
            base = read_json(file).get("base")
            return base if isinstance(base, str) else None
    return None


def figures_table(heldout: Accuracy | None, validation: Mapping[str, float]) -> str:
    """Every number of the held-out report that has an interval, and the last validation's, as a Markdown table."""
    rows = [(name, _written(each)) for name, each in _intervals(heldout.to_json() if heldout else {})]
    rows += [(name, f"{value:.4g}") for name, value in validation.items()]
    if not rows:
        return "Nothing: no query was held out."
    return markdown_table([("", "with 95% interval, where there is one"), *rows]).strip()


def _intervals(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, float]]]:
    for key, value in report.items():
        if isinstance(value, Mapping) and {"mean", "low", "high"} <= set(value):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _intervals(value, f"{prefix}{key} / ")


def _written(interval: Mapping[str, float | None]) -> str:
    """A number with its interval; one query of a kind has none."""
    mean, low, high = (interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _data(index: Index, origins: Origins, summary: TrainingSummary) -> str:
    categories = Counter(map(one_line, index.column("category")))
    sources = [one_line(name) for name, _ in origins.sources.most_common()]
    facts = {
        "queries": len(index),
        "responses": int(index.column("num_responses").sum()),
        "ranked pairs": int(index.column("num_pairs").sum()),
        "sources": [*sources[:MOST_NAMED], *([f"{len(sources) - MOST_NAMED} more"] if sources[MOST_NAMED:] else [])],
        "categories": dict(categories.most_common(12)),
        "digest": index.digest[:16],
        "optimizer steps": summary.steps,
        "queries a step": summary.groups_per_step,
    }
    return _yaml({name: value for name, value in facts.items() if value})


def _licence(origins: Origins, base: str | None) -> str:
    start = markdown_text(base) if base else "the checkpoint that it started from"
    named = origins.licence_names()
    return f"The terms of {start} and of the data (licences that the records name: {named}) hold for this model, too."


def _named(base: str | None, family: str) -> str:
    return f"`{base}`" if base else f"a checkpoint of the family `{family}` that is on no hub"


def _made_by() -> dict[str, Any]:
    found = versions()
    return {**{name: found[name] for name in _NAMED}, "commit": git_commit()["commit"]}


def _yaml(content: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(_portable(content), sort_keys=False, allow_unicode=True)}```"


def _portable(value: Any) -> Any:
    """Plain values without places of this machine: of a path, its last name is left; of an object, its class."""
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_portable(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "~", "./", "../"))):
        return Path(value).name
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
