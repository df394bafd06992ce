"""What a command would do, stage by stage, before it does anything: `dry=true`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.chain.artifact import Artifact, Recipe
from mmrlhf.chain.code import changed, describe
from mmrlhf.chain.order import Node, is_reusable
from mmrlhf.chain.runner import Runner
from mmrlhf.files import hide_credentials
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.trees import flat

_MOST_REASONS = 4
_LONGEST = 40


@dataclass(frozen=True)
class Forecast:
    """What will become of one stage: reused or built, why, and in about how many seconds (None: never built here)."""

    stage: str
    reused: bool
    why: str
    seconds: float | None
    folder: Path | None = None


def forecast_chain(chain: Sequence[Node], runner: Runner) -> list[Forecast]:
    """Predict every stage of a chain; nothing runs and nothing is written."""
    found: dict[str, Artifact] = {}
    forecasts = []
    for node in chain:
        forecast, artifact = _forecast(node, runner, found)
        forecasts.append(forecast)
        if artifact is not None:
            found[node.name] = artifact
    return forecasts


def _forecast(node: Node, runner: Runner, found: Mapping[str, Artifact]) -> tuple[Forecast, Artifact | None]:
    records = list(_records(runner.store.root / node.name))
    missing = [name for name in node.references if name not in found]
    # inputs that are still to be built have no fingerprint yet; nothing in the store can be made of them
    known = {name: found.get(name, _unbuilt(name)) for name in node.references}
    recipe, differs = runner.store.choose(runner.recipe(node, known), runner.code)
    artifact = None if missing or not is_reusable(node) else runner.store.find(recipe)
    if artifact is not None:
        why = f"code has changed since: {describe(differs)}" if differs and runner.code == "warn" else ""
        return Forecast(node.name, True, why, 0.0, artifact.folder), artifact
    nearest = min(records, key=lambda record: (len(reasons(recipe, record)), -record["age"]), default=None)
    seconds = float(nearest["seconds"]) if nearest is not None else None
    why = [f"input {name} will be built" for name in missing]
    if not is_reusable(node):
        why.append("runs anew each time")
    elif nearest is None:
        why.append("never built here")
    else:
        why += [text for text in reasons(recipe, nearest) if not any(text.startswith(f"input {n} ") for n in missing)]
    if runner.store.building(recipe).is_dir() and not missing:
        why.append(_leftover(runner, recipe))
    more = [f"and {len(why) - _MOST_REASONS} more"] if len(why) > _MOST_REASONS else []
    return Forecast(node.name, False, "; ".join([*why[:_MOST_REASONS], *more]), seconds), None


def _leftover(runner: Runner, recipe: Recipe) -> str:
    other = runner.store.begun_by_other_code(recipe)
    begun = f", begun by other code: {describe(other)}" if other and runner.code != "ignore" else ""
    verb = "starts anew" if other and runner.code == "rebuild" else "goes on with"
    return f"{verb} what an earlier run has left{begun}"


def _unbuilt(name: str) -> Artifact:
    return Artifact(name, "unbuilt", Path(), 0.0, {}, reused=False)


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"*/{ARTIFACT_FILE}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if path.parent.name == record["fingerprint"][: len(path.parent.name)]:
                yield {"age": path.stat().st_mtime, "seconds": 0.0, **record}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `Store.find` says what is wrong with it, if it is the one that is needed


def reasons(recipe: Recipe, record: Mapping[str, Any]) -> list[str]:
    """In what a recipe differs from the record of an artefact: settings, inputs, contents, version, code."""
    before, now = flat(record.get("settings", {})), flat(hide_credentials(recipe.settings))
    found = [f"{name} {_short(before, name)} -> {_short(now, name)}" for name in changed(before, now)]
    found += [f"input {name} is another" for name in changed(record.get("inputs", {}), recipe.inputs)]
    held, holds = record.get("sources", {}), hide_credentials(recipe.sources)
    found += [f"{name} holds other data" for name in changed(held, holds) if name in held and name in holds]
    code = record.get("code", {})
    if code.get("version", 1) != recipe.version:
        found.append(f"version {code.get('version', 1)} -> {recipe.version}")
    own = changed(code.get("own", {}), recipe.own_code)
    package = changed(code.get("package", {}), recipe.package_code)
    if own:
        found.append(f"your code: {describe(own)}")
    if package and record["fingerprint"] != recipe.fingerprint and not found:
        found.append(f"code: {describe(package)}")
    return found


def _short(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name], ensure_ascii=False) if name in values else "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
