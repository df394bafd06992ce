"""Critiques that a reward model writes behind responses; from then on they are read like annotated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmrlhf.inference.passes import decode_text, encode_usable
from mmrlhf.inference.readings import Asked, Criticised
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.models.decoding import generate
from mmrlhf.models.decoding_rows import Continuation
from mmrlhf.models.forward import PackedModel
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.types import PreferenceGroup

# What a critique may grow by when its text is encoded again, wherever it is written.
GROWTH = 16


@dataclass(frozen=True)
class Critic:
    """A model that writes critiques of a kind.

    encoder: of contexts that end where a critique begins, and of responses with theirs; settings: how it writes;
    cache_tokens: as in `mmrlhf.models.decoding.generate`.
    """

    model: PackedModel
    encoder: Encoder
    kind: str
    settings: CritiqueSettings
    cache_tokens: int

    def write(self, groups: Sequence[PreferenceGroup], contexts: Sequence[EncodedGroup]) -> list[Criticised]:
        """Put `num_samples` copies of every response in its place, each with a critique that the model writes now.

        The text is what counts: it is encoded again like an annotated one, so that giving it back reproduces the score.
        It may have more tokens then than it was written with (parts of characters become replacement characters): where
        these do not fit, the critique loses its end, and never the response on which it was written.
        """
        written = generate(
            self.model,
            contexts,
            max_new_tokens=self.settings.max_tokens,
            end_tokens=self.encoder.end_tokens,
            temperature=self.settings.temperature,
            num_samples=self.settings.num_samples,
            seed=self.settings.seed,
            cache_tokens=self.cache_tokens,
        )
        return [self._criticised(*each) for each in zip(groups, contexts, written, strict=True)]

    def _criticised(self, group: PreferenceGroup, context: EncodedGroup, written: Sequence[Continuation]) -> Criticised:
        samples = self.settings.num_samples
        # Equal responses share one context, hence its critiques.
        branches = [number % len(context.branches) for number in range(len(group.responses)) for _ in range(samples)]
        responses, critique_cut = [], []
        for place, branch in enumerate(branches):
            critique = written[branch * samples + place % samples]
            text = decode_text(self.encoder.processor, critique.ids).strip()
            kept = self.encoder.beginning(text, self.encoder.room_behind(context, branch)).strip()
            responses.append(
                replace(
                    group.responses[place // samples],
                    text=context.branches[branch].shown,
                    critiques={self.kind: kept},
                )
            )
            critique_cut.append(critique.cut or kept != text)
        return Criticised(
            replace(group, responses=tuple(responses), pairs=()),
            critique_cut,
            [context.branches[branch].truncated for branch in branches],
        )

    def readings(
        self, contexts: Mapping[int, Sequence[Asked]], quarantine: Quarantine | None
    ) -> dict[int, list[Asked]]:
        """Readings of contexts with critiques that the model writes behind them, one for each sample of each order."""
        every, samples = [each for own in contexts.values() for each in own], self.settings.num_samples
        found = iter(self.write([each.criticised.group for each in every], [each.encoded for each in every]))
        written = {
            (place, each.order, number): criticised.sample(number, samples)
            for place, own in contexts.items()
            for each, criticised in zip(own, found, strict=False)
            for number in range(samples)
        }
        encoded = encode_usable({name: each.group for name, each in written.items()}, self.encoder, quarantine)
        lost = {name[0] for name in written if name not in encoded}
        readings: dict[int, list[Asked]] = {place: [] for place in contexts if place not in lost}
        for (place, order, number), each in written.items():
            if place not in lost:
                readings[place].append(Asked(order, each, encoded[place, order, number]))
        return readings
