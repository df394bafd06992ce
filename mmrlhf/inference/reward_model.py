"""A trained reward model in Python: `RewardModel.from_pretrained(folder).score(image_or_video, prompt, responses)`.

The stages use the same object, so a score from Python is the score in the tables. A model that was trained with
critiques writes one per response first and scores the response with it in context (arXiv 2502.10391, section 4).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from transformers import ProcessorMixin

from mmrlhf.errors import ConfigError
from mmrlhf.inference.cards import trained_media, trained_model, trained_reading, trained_template
from mmrlhf.inference.critic import GROWTH, Critic
from mmrlhf.inference.passes import CACHE_PER_BUDGET, encode_usable, forward_groups
from mmrlhf.inference.probes import encoder_of
from mmrlhf.inference.question import Picture, Prompt, ask
from mmrlhf.inference.readings import Asked, Criticised, together, uncriticised
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.verdicts import Verdict, verdicts_on
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.reward_folder import load_reward_model
from mmrlhf.models.settings import untrained
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import Reading, in_order, reading_orders
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.protocol import Protocol, Thumbnails, with_protocol
from mmrlhf.tokens.templates import CritiqueTemplate
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

CritiqueSource = Literal["generate", "given"]
# The longest critique of MM-RLHF's released evaluation.
RELEASED_CRITIQUE = 4096


class RewardModel:
    """A reward model with everything needed to ask it.

    Args:
        model: backbone with a trained score head.
        processor: the backbone's own.
        template: how it was trained to be asked; `critique="none"` scores at once.
        media: how videos become frames, as in training.
        token_budget: tokens of one packed forward.
        critiques: how it writes them, and in which orders it reads responses in turn.
        reading: whether it was trained to read a query's responses `apart` or `in_turn`; then a reward is of a response
            among the others that it is asked about.
    """

    def __init__(
        self,
        model: PackedModel,
        processor: ProcessorMixin,
        *,
        template: CritiqueTemplate,
        media: MediaSettings,
        token_budget: int = 4096,
        critiques: CritiqueSettings | None = None,
        reading: Reading = "apart",
    ) -> None:
        self.reading: Reading = reading
        self.model, self.processor, self.template, self.media = model.eval(), processor, template, media
        self.token_budget, self.critiques = token_budget, critiques or CritiqueSettings()
        self.encoder = self._encoder_with(processor)

    def _encoder_with(self, processor: ProcessorMixin) -> Encoder:
        room = self.critiques.max_tokens + GROWTH if self.writes_critiques else 0
        return encoder_of(
            self.model, processor, template=self.template, media=self.media, room=room, reading=self.reading
        )

    def another_encoder(self) -> Encoder:
        """An encoder like its own for another thread: two threads must not ask one tokenizer at a time."""
        return self._encoder_with(copy.deepcopy(self.processor))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        passes: PassSettings | None = None,
        critiques: CritiqueSettings | None = None,
        *,
        protocol: Protocol = "trained",
        device: torch.device | str | None = None,
    ) -> RewardModel:
        """Load the folder that the reward stage wrote (`.../model`).

        Args:
            passes: how the model runs; its media and precision, where given, win over those it was trained with, with a
                warning. None: as it was trained.
            critiques: how critiques are written.
            protocol: `trained`: as it was trained; `released`: as MM-RLHF's release evaluates LLaVA-OneVision, with
                thumbnails alone and critiques of up to 4,096 tokens.
            device: default: the first GPU, else the CPU.

        Raises:
            ModelError: no trained score head in the folder, or a card that does not say how it is asked.
            ConfigError: `protocol=released` for another family.
        """
        asked, passes = passes, passes or PassSettings()
        settings = replace(untrained(passes.model), family="")  # the card says what it is
        packed, processor, card = load_reward_model(folder, settings)
        processor = with_protocol(processor, protocol, packed.backbone.config.model_type)
        if protocol == "released":
            critiques = replace(critiques or CritiqueSettings(), max_tokens=RELEASED_CRITIQUE)
        trained = trained_model(card, settings, folder)
        if asked is None:
            packed.settings = trained
        elif settings.precision != trained.precision:
            log.warning("%s was trained in %s and is asked in %s", folder, trained.precision, settings.precision)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        template, media = trained_template(card, folder), trained_media(card, folder)
        if passes.media is not None and passes.media != media:
            log.warning("%s was trained with %s and is asked with %s", folder, media, passes.media)
        return cls(
            packed.to(device),
            processor,
            template=template,
            media=passes.media or media,
            token_budget=passes.token_budget,
            critiques=critiques,
            reading=trained_reading(card, folder),
        )

    @property
    def protocol(self) -> Protocol:
        """What it is shown."""
        return "released" if isinstance(self.processor, Thumbnails) else "trained"

    @property
    def writes_critiques(self) -> bool:
        """Whether it was trained to write a critique before it scores."""
        return self.template.critique != "none"

    @property
    def in_turn(self) -> bool:
        """Whether a response's reward depends on the others that it is asked about."""
        return self.reading == "in_turn"

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the scores that it gives beside the reward."""
        return getattr(self.model.score_head, "dimensions", ())

    @property
    def critic(self) -> Critic:
        """Who writes its critiques."""
        cache_tokens = CACHE_PER_BUDGET * self.token_budget
        return Critic(self.model, self.encoder, self.template.critique, self.critiques, cache_tokens)

    def without_critiques(self) -> RewardModel:
        """The same model, asked to score at once: at the end of the response, where its critique would begin."""
        return type(self)(
            self.model,
            self.processor,
            template=replace(self.template, critique="none"),
            media=self.media,
            token_budget=self.token_budget,
            critiques=CritiqueSettings(orders=self.critiques.orders),
            reading=self.reading,
        )

    def score(
        self, media: Picture | Sequence[Picture] | None, prompt: Prompt, responses: Sequence[str]
    ) -> list[tuple[float, str]]:
        """Score the responses to one prompt: (reward, critique) each.

        Args:
            media, prompt, responses: as in `mmrlhf.inference.question.ask`.

        Raises:
            DataError: unreadable media, a prompt that does not fit, no response.
        """
        group = ask(media, prompt, responses)
        return [(verdict.reward, verdict.critique) for verdict in self.score_groups([group])[0]]

    def score_groups(
        self,
        groups: Sequence[PreferenceGroup],
        contexts: Sequence[EncodedGroup] | None = None,
        *,
        critique_source: CritiqueSource = "generate",
        quarantine: Quarantine | None = None,
    ) -> list[list[Verdict]]:
        """Score all responses of many groups, group by group, response by response.

        Args:
            contexts: the groups as they were encoded ahead: by `encoder.context` where critiques are written, else by
                `encoder` itself.
            critique_source: `generate` writes critiques, `given` takes the annotated ones.
            quarantine: takes groups that cannot be scored, which get no verdicts ([]); None: they are an error.

        Raises:
            DataError: a group that does not fit or cannot be read; `given`, but a response has no such critique.
        """
        if critique_source not in ("generate", "given"):
            raise ConfigError(
                "unknown source of critiques",
                where="critique_source",
                given=critique_source,
                expected="generate, given",
            )
        if self.in_turn:
            return self._score_in_turn(groups, contexts, critique_source == "generate", quarantine)
        asked, samples, written = dict(enumerate(groups)), 1, dict[int, Criticised]()
        if self.writes_critiques and critique_source == "generate":
            ahead = encode_usable(asked, self.encoder.context, quarantine) if contexts is None else enumerate(contexts)
            known = dict(ahead)
            found = self.critic.write([asked[place] for place in known], list(known.values()))
            written, samples = dict(zip(known, found, strict=True)), self.critiques.num_samples
            asked = {place: each.group for place, each in written.items()}
        if contexts is not None and not written:
            encoded = dict(enumerate(contexts))
        else:
            encoded = encode_usable(asked, self.encoder, quarantine)
        scores = forward_groups(self.model, list(encoded.values()), token_budget=self.token_budget)
        verdicts = {
            place: verdicts_on(
                asked[place],
                score,
                kind=self.template.critique,
                dimensions=self.dimensions,
                samples=samples,
                combine=self.critiques.combine,
                critique_cut=written[place].critique_cut if place in written else (),
                response_cut=written[place].response_cut if place in written else (),
            )
            for place, score in zip(encoded, scores, strict=True)
        }
        return [verdicts.get(place, []) for place in range(len(groups))]

    def score_alone(
        self, groups: Sequence[PreferenceGroup], *, quarantine: Quarantine | None = None
    ) -> list[list[Verdict]]:
        """As `score_groups`, but that no response's reward depends on the query's others, even where they are read in
        turn; a query of which one response cannot be scored gets no verdicts.
        """
        if not self.in_turn:
            return self.score_groups(groups, quarantine=quarantine)
        alone = [replace(group, responses=(response,), pairs=()) for group in groups for response in group.responses]
        found = iter(self.score_groups(alone, quarantine=quarantine))
        verdicts = [[one for _ in group.responses for one in next(found)] for group in groups]
        return [own if len(own) == len(group.responses) else [] for own, group in zip(verdicts, groups, strict=True)]

    def _score_in_turn(
        self,
        groups: Sequence[PreferenceGroup],
        contexts: Sequence[EncodedGroup] | None,
        may_write: bool,
        quarantine: Quarantine | None,
    ) -> list[list[Verdict]]:
        """As `score_groups`, with a forward for each order of a query's responses."""
        writes = self.writes_critiques and may_write
        encode = self.encoder.context if writes else self.encoder
        ahead = encode_usable(dict(enumerate(groups)), encode, quarantine) if contexts is None else enumerate(contexts)
        readings = {
            place: [
                Asked(order, uncriticised(groups[place], order), in_order(encoded, order))
                for order in reading_orders(encoded, self.critiques.orders)
            ]
            for place, encoded in dict(ahead).items()
        }
        if writes:
            readings = self.critic.readings(readings, quarantine)
        every = [asked.encoded for own in readings.values() for asked in own]
        scores = iter(forward_groups(self.model, every, token_budget=self.token_budget))
        verdicts: dict[int, list[Verdict]] = {}
        for place, own in readings.items():
            read, score = together(groups[place], [(asked, next(scores)) for asked in own])
            verdicts[place] = verdicts_on(
                read.group,
                score,
                kind=self.template.critique,
                dimensions=self.dimensions,
                samples=len(own),
                combine=self.critiques.combine if self.writes_critiques else "mean",
                critique_cut=read.critique_cut,
                response_cut=read.response_cut,
            )
        return [verdicts.get(place, []) for place in range(len(groups))]
