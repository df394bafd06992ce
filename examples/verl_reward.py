"""verl with a served reward model, beside `mmrlhf serve`:

    custom_reward_function.path=examples/verl_reward.py

verl hands over one decoded response and its row's `extra_info`, where your data set keeps the `question` and, if it has
pictures, their addresses as `images`. verl asks for many rows at once; the server batches them and reads each question
once.
"""

import os

import httpx

SERVER = httpx.Client(base_url=os.environ.get("REWARD_SERVER", "http://127.0.0.1:8000"), timeout=120)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The reward of one response."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in extra_info.get("images", ())]
    content = [*pictures, {"type": "text", "text": extra_info["question"]}]
    body = {"messages": [{"role": "user", "content": content}], "responses": [solution_str]}
    return SERVER.post("/v1/rewards", json=body).raise_for_status().json()["data"][0]["reward"]
