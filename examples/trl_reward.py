"""TRL's GRPO with a served reward model: `GRPOTrainer(reward_funcs=served_reward, ...)`, beside `mmrlhf serve`.

TRL hands over prompts and completions (texts, or messages in conversational data sets) and the data set's other
columns; a column `images` holds each prompt's pictures. Requests go out together, so that the server batches them and
reads each prompt once, however many completions it has.
"""

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor

import httpx

SERVER = httpx.Client(base_url=os.environ.get("REWARD_SERVER", "http://127.0.0.1:8000"), timeout=120)


def served_reward(prompts, completions, images=None, **_):
    """A reward for each completion."""

    def ask(number):
        pictures = iter(images[number] if images else ())
        messages = [as_message(turn, pictures) for turn in as_turns(prompts[number], "user")]
        if next(pictures, None) is not None:
            raise ValueError(
                f"prompt {number} has more pictures than parts of type `image`, and would be asked without"
            )
        body = {"messages": messages, "responses": [as_turns(completions[number], "assistant")[-1]["content"]]}
        answer = SERVER.post("/v1/rewards", json=body).raise_for_status()
        return answer.json()["data"][0]["reward"]

    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(ask, range(len(prompts))))


def as_turns(said, role):
    """A text as the one turn that it is; messages as they are."""
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def as_message(turn, pictures):
    """A turn with the next pictures in the places of its parts of type `image`."""
    parts = turn["content"]
    if isinstance(parts, list):
        parts = [as_picture(next(pictures)) if part["type"] == "image" else part for part in parts]
    return {"role": turn["role"], "content": parts}


def as_picture(image):
    """A PIL image as a part of a message."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}
