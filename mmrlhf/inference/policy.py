"""A policy in Python: `Policy.from_pretrained(folder).answer(image_or_video, prompt)`, and what it thinks of answers.

The stages use the same object: what it reads is encoded as in training, and what it answers is what an evaluation sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.cards import trained_media
from mmrlhf.inference.passes import decode_text, forward_groups
from mmrlhf.inference.probes import encoder_of
from mmrlhf.inference.question import Picture, Prompt, ask
from mmrlhf.inference.settings import PassSettings
from mmrlhf.media.damage import Damage
from mmrlhf.models.decoding import generate
from mmrlhf.models.export import read_policy_card
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import untrained
from mmrlhf.ranges import check_draws
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.templates import AnswerTemplate


@dataclass(frozen=True)
class Policy:
    """A policy that is only asked: its model in evaluation mode, the encoder of its answers, tokens of one forward."""

    model: PackedModel
    encoder: Encoder
    token_budget: int = 4096

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        passes: PassSettings | None = None,
        *,
        damage: Damage | None = None,
        room: int = 0,
        device: torch.device | str | None = None,
    ) -> Policy:
        """Load a checkpoint folder or hub id, with nothing trainable.

        Args:
            passes: how the model runs; without media settings, those it was trained with, where the folder says.
            damage: also encodes a damaged copy of the media.
            room: tokens that stay free behind a prompt, for an answer.
            device: default: the first GPU, else the CPU.

        Raises as `load_backbone`.
        """
        passes = passes or PassSettings()
        settings = untrained(passes.model)
        backbone, processor = load_backbone(folder, settings)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        packed = PackedModel(backbone, settings).to(device).eval()
        encoder = encoder_of(
            packed,
            processor,
            template=AnswerTemplate(),
            media=passes.media or trained_media(read_policy_card(folder), folder),
            room=room,
            damage=damage,
        )
        return cls(packed, encoder, passes.token_budget)

    def answer(
        self,
        media: Picture | Sequence[Picture] | None,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """Answer one prompt; at temperature 0 with the likeliest token each time.

        Args:
            media, prompt: as in `mmrlhf.inference.question.ask`.
            max_new_tokens: longest answer; a longer one ends there.
            seed: draws the answer at a temperature above 0.

        Raises:
            DataError: unreadable media, a prompt that does not fit.
        """
        (text,) = self.answers(
            media, prompt, num_samples=1, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        return text

    def answers(
        self,
        media: Picture | Sequence[Picture] | None,
        prompt: Prompt,
        *,
        num_samples: int = 4,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Answer one prompt several times; media and prompt are read once. Arguments and errors as in `answer`."""
        if max_new_tokens < 1 or num_samples < 1 or temperature < 0:
            raise ConfigError(
                "answers cannot be written like this",
                given=f"max_new_tokens={max_new_tokens}, num_samples={num_samples}, temperature={temperature}",
                expected="max_new_tokens and num_samples of 1 or more, a temperature of 0 or more",
            )
        check_draws("answers to a prompt", num_samples, temperature)
        (written,) = generate(
            self.model,
            [self.encoder.context(ask(media, prompt, ["no response is shown"]))],
            max_new_tokens=max_new_tokens,
            end_tokens=self.encoder.end_tokens,
            temperature=temperature,
            num_samples=num_samples,
            seed=seed,
        )
        return [decode_text(self.encoder.processor, one.ids) for one in written]

    def logprob(
        self, media: Picture | Sequence[Picture] | None, prompt: Prompt, responses: Sequence[str]
    ) -> list[float]:
        """Log-probability of each response in nats: the sum over its tokens, the end of the turn included.

        Args:
            media, prompt, responses: as in `mmrlhf.inference.question.ask`.

        Raises:
            DataError: unreadable media, a prompt or a response that does not fit, no response.
        """
        group = self.encoder(ask(media, prompt, responses))
        for number, branch in enumerate(group.branches):
            if branch.truncated:
                raise DataError(
                    "a response is longer than the model's context",
                    where=f"response {number}",
                    given=f"{branch.truncated} tokens too many",
                    expected=f"prompt and response of {self.encoder.max_tokens} tokens at most",
                    fix="PassSettings(model=ModelSettings(max_tokens=...)) allows more",
                )
        (scores,) = forward_groups(self.model, [group], token_budget=self.token_budget)
        return scores.logprob.tolist()
