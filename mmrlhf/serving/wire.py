"""What is sent and answered: `/v1/rewards`, and the forms of OpenRLHF and LLaMA-Factory, as pydantic models.

Facts about the two trainers' forms are from their public sources: OpenRLHF's `openrlhf/utils/agent.py` and
`openrlhf/cli/serve_rm.py`, LLaMA-Factory's `train/ppo/ppo_utils.py` and `api/protocol.py` (both of August 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _whole(text: str) -> str:
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("text with half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_whole)]


class _Strict(BaseModel):
    """Types as they are, and no key that nothing reads."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Trainer(BaseModel):
    """A form that others define: types as they are, keys that are not needed here left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class Address(_Strict):
    """Where a picture or clip is."""

    url: str = Field(description="`data:image/png;base64,...`, or an http(s) address of a host that is allowed")
    detail: Literal["auto"] = Field("auto", description="how a picture is read is how the model was trained")


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: Address


class VideoPart(_Strict):
    """A clip."""

    type: Literal["video_url"]
    video_url: Address


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
PART_TYPES = ("text", "image_url", "video_url")


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """A turn of a conversation; a text stands for one part."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=Text | list[Part])]


class RewardRequest(_Strict):
    """A conversation that ends with the user's turn, and the responses to judge."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "What is in the picture?"}]}],
                "responses": ["A red circle.", "A blue square."],
            }
        }
    )

    messages: list[Message] = Field(min_length=1)
    responses: list[Text] = Field(min_length=1)
    model: Text = Field("", description="not needed: there is one model")


class Reward(BaseModel):
    """What the model says about one response."""

    index: int
    reward: float
    critique: str = Field(description="what it wrote before it scored; empty for a model without critiques")
    scores: dict[str, float] = Field(description="on the dimensions that it was trained on")
    critique_cut: bool = Field(description="whether the critique reached its longest length")
    response_cut: int = Field(description="tokens by which the response was shortened to fit")


class RewardAnswer(BaseModel):
    """One reward for each response, in their order."""

    object: Literal["rewards"] = "rewards"
    model: str
    data: list[Reward]


class Problem(BaseModel):
    """Why there is no answer."""

    message: str = Field(description="one sentence")
    type: str
    param: str | None = Field(description="the field")
    code: str


class ErrorAnswer(BaseModel):
    """A request that is not answered."""

    error: Problem


class OpenRLHFRequest(_Trainer):
    """OpenRLHF's remote reward model: `query` holds prompt and response as the policy's chat template writes them."""

    query: list[Text] = Field(min_length=1)
    prompts: list[Text] | None = Field(None, description="as they begin the queries")
    images: list[list[str]] | None = Field(
        None, description="not sent by OpenRLHF: addresses of each query's pictures, in the order of their placeholders"
    )


class OpenRLHFAnswer(BaseModel):
    """A reward for each query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = Field(description="scores on the model's dimensions")


class ScoreRequest(_Trainer):
    """LLaMA-Factory's reward server: each message holds prompt and response as the chat template writes them."""

    model: Text = ""
    messages: list[Text] = Field(min_length=1)
    max_length: None = Field(None, description="cannot be set: the model's own length counts")


class ScoreAnswer(BaseModel):
    """A score for each message."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def field_of(location: Sequence[str | int]) -> str:
    """The field that an error of pydantic is in, as one would write it: `messages[0].content[1].image_url.url`."""
    path, before = "", list(location)
    for place, name in enumerate(before):
        if place > 1 and isinstance(before[place - 1], int) and before[place - 2] == "content" and name in PART_TYPES:
            continue  # which of the kinds of parts it is, and no key
        path += f"[{name}]" if isinstance(name, int) else f".{name}"
    return path.removeprefix(".")
