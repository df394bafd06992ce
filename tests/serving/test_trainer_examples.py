"""The examples of reward functions, called as TRL and verl call them, against a real server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from PIL import Image
from stand_ins.served_model import Served

from mmrlhf.inference.question import ask

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(judge_served: Served, monkeypatch: pytest.MonkeyPatch):
    """Import an example whose server is the test's."""
    monkeypatch.setenv("REWARD_SERVER", judge_served.url)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        opened.append(module.SERVER)
        return module

    opened: list[httpx.Client] = []
    yield load
    for client in opened:
        client.close()


def alone(served: Served, image: Image.Image | None, prompt: str, response: str) -> float:
    (verdict,) = served.judge.score_groups([ask(image, prompt, [response])])[0]
    return verdict.reward


def test_trl_texts(judge_served: Served, example) -> None:
    prompts, completions = ["red ?", "red ?", "blue ?"], ["a circle", "no", "yes"]
    found = example("trl_reward").served_reward(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1], [2], [3]],
        trainer_state=None,
        ground_truth=[""] * 3,
    )
    want = [alone(judge_served, None, *each) for each in zip(prompts, completions, strict=True)]
    assert found == pytest.approx(want, abs=1e-4)


def test_trl_messages_with_pictures(judge_served: Served, example) -> None:
    image = Image.new("RGB", (40, 30), "blue")
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    completions = [[{"role": "assistant", "content": text}] for text in ("a square", "nothing")]
    found = example("trl_reward").served_reward(prompts=[prompt] * 2, completions=completions, images=[[image]] * 2)
    want = [alone(judge_served, image, "what ?", text) for text in ("a square", "nothing")]
    assert found == pytest.approx(want, abs=1e-4)


def test_trl_pictures_without_a_place_are_not_left_out(judge_served: Served, example) -> None:
    """A reward without the picture would be another one."""
    prompt, picture = [{"role": "user", "content": "what ?"}], Image.new("RGB", (40, 30), "blue")
    with pytest.raises(ValueError, match="prompt 0 has more pictures"):
        example("trl_reward").served_reward(prompts=[prompt], completions=["a square"], images=[[picture]])


def test_verl(judge_served: Served, example) -> None:
    found = example("verl_reward").compute_score(
        data_source="x", solution_str="a circle", ground_truth="", extra_info={"question": "red ?", "num_turns": 2}
    )
    assert found == pytest.approx(alone(judge_served, None, "red ?", "a circle"), abs=1e-4)
