"""Settings that take less memory, as far as they help: each is tried on the same prediction as what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mmrlhf.errors import UserError
from mmrlhf.models.settings import QUANTIZED, ModelSettings
from mmrlhf.models.storage import check_storage
from mmrlhf.models.weight_files import require_mergeable
from mmrlhf.training.ranks import Ranks
from mmrlhf.training.settings import TrainSettings, require_splittable

# how much of the memory that there is training takes, with settings and ranks; more than 1 does not fit
Share = Callable[[TrainSettings, Ranks], float]
# what changes less than this part of what is taken helps nobody
_LEAST_SAVED = 0.01
_MOST_WAYS = 5


class Way(NamedTuple):
    """Settings as they are typed, and what training and ranks are with them."""

    words: str
    training: TrainSettings
    ranks: Ranks


def smaller(
    training: TrainSettings, ranks: Ranks, share: Share, *others: tuple[str, float], start: str | Path = ""
) -> str:
    """Say which settings are enough, or where none is, which take less: what saves most first, with what it then takes.

    Args:
        share: of the memory that is short, or of the shortest of several.
        others: words that are no settings of these, and the share with them.
        start: the checkpoint that is trained; what it cannot be loaded with is left out.
    """
    now = share(training, ranks)
    tried = [*others, *((way.words, share(way.training, way.ranks)) for way in _ways(training, ranks, start))]
    helpful = sorted((then, words) for words, then in tried if then < (1 - _LEAST_SAVED) * now)
    enough = [(then, words) for then, words in helpful if then < 1] or helpful
    ways = [f"{words} ({then:.0%} of the memory there is)" for then, words in enough[:_MOST_WAYS]]
    return "; or ".join(ways) or "a smaller model, or a machine with more memory"


def _ways(training: TrainSettings, ranks: Ranks, start: str | Path) -> Iterator[Way]:
    """Settings that are not in use yet and that this training can have."""
    for words, model in _models(training.model):
        yield from _possible(words, lambda model=model: replace(training, model=model), ranks, start)
    words, optim = "optim.name=adamw_8bit", training.optim
    yield from _possible(words, lambda: replace(training, optim=replace(optim, name="adamw_8bit")), ranks, start)
    for words, other in _spread(ranks):
        yield from _possible(words, lambda: training, other, start)


def _possible(words: str, make: Callable[[], TrainSettings], ranks: Ranks, start: str | Path) -> Iterator[Way]:
    """A way, unless its settings do not go together or with the checkpoint, or want a package that is not there."""
    try:
        training = make()
        check_storage(training.model)
        require_mergeable(start, training.model.weights)
        if ranks.split:
            require_splittable(training)
    except UserError:
        return
    yield Way(words, training, ranks)


def _models(model: ModelSettings) -> Iterator[tuple[str, ModelSettings]]:
    adapters = replace(model, language="lora", projector="frozen")
    said = "model.settings.language=lora model.settings.projector=frozen"
    if model.language == "full":
        yield said, adapters
    for words, trained in (("", model), (f"{said} ", adapters)) if model.language == "full" else (("", model),):
        if trained.weights not in ("bf16", *QUANTIZED):
            rounded = "" if trained.precision == "bf16" else " model.settings.precision=bf16"
            yield f"{words}model.settings.weights=bf16{rounded}", replace(trained, weights="bf16", precision="bf16")
        if trained.weights not in QUANTIZED:
            yield f"{words}model.settings.weights=nf4", replace(trained, weights="nf4")
    if not model.gradient_checkpointing:
        yield "model.settings.gradient_checkpointing=true", replace(model, gradient_checkpointing=True)


def _spread(ranks: Ranks) -> Iterator[tuple[str, Ranks]]:
    """More ranks, here or on more machines, fewer on each machine, and shards on the host."""
    split = replace(ranks, split=True)
    before, behind = ("", " that share a model") if ranks.split else ("trainer=fsdp on ", "")
    more = replace(split, number=2 * ranks.number, sharing=2 * (ranks.sharing if ranks.split else ranks.number))
    yield f"{before}more devices{behind}", replace(more, on_machine=2 * ranks.on_machine)
    yield f"{before}more machines{behind}", more
    if ranks.on_machine > 1:
        on_machine = ranks.on_machine // 2
        number = ranks.number // ranks.on_machine * on_machine
        sharing = number if ranks.sharing == ranks.number else ranks.sharing
        if number % sharing == 0:
            fewer = replace(ranks, number=number, on_machine=on_machine, sharing=sharing)
            yield "fewer devices on each machine (trainer.devices)", fewer
    if not ranks.offloaded:
        offloaded = replace(split, offloaded=True, sharing=ranks.sharing if ranks.split else ranks.number)
        yield f"{'' if ranks.split else 'trainer=fsdp '}trainer.cpu_offload=true", offloaded
