"""The annotation page in a real browser: queries annotated by keyboard and by mouse, and a server that is killed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from stand_ins.annotators import unranked
from stand_ins.browser import chromium
from stand_ins.commands import PROJECT, environment

from mmrlhf.annotation.filled_forms import DIMENSIONS, Form
from mmrlhf.annotation.form_store import submitted_forms
from mmrlhf.shapes.draw import encode_video
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup, Response

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIP = Media("video", ("mp4",), (encode_video(np.full((8, 48, 64, 3), 120, np.uint8)),))
ATTACK = "<img src=x onerror=document.title='attacked'><script>document.title='attacked'</script>"
GROUPS = [
    unranked("four", 4),
    unranked("clip", 3, media=(CLIP,)),
    PreferenceGroup("attack", ATTACK, (Response(ATTACK), Response("an honest answer"))),
]
ANSWERS = "return [...document.querySelectorAll('.answer')].map(card => card.querySelector('.words').textContent)"
CLIP_SECONDS = 'return document.querySelector("video")?.duration || 0'
TEXTS = {response.text: (group.key, place) for group in GROUPS for place, response in enumerate(group.responses)}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_shards(GROUPS, folder)
    return folder


@contextmanager
def command(folder: Path, asked: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command that a user types, once it answers."""
    words = ["stage=annotate", f"inputs.asked={asked}", f"runtime.annotation_port={port}", "stages.annotate.doubly=0"]
    words += ["logger=none", f"hydra.run.dir={folder}/run"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "run.py"), *words], cwd=folder, env=environment(), stdout=log, stderr=log
        )
    try:
        wait(lambda: process.poll() is None and _answers(port), 120)
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait(said: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := said():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not become true")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path / "profile") as found:
        yield found


def begin(browser: Chrome, port: int) -> None:
    browser.get(f"http://127.0.0.1:{port}/")
    wait(lambda: browser.find_element(By.ID, "join").is_displayed())
    browser.find_element(By.ID, "name").send_keys("ann" + Keys.ENTER)
    wait(lambda: browser.find_elements(By.CLASS_NAME, "answer"))


def keys(browser: Chrome, *pressed: str) -> None:
    ActionChains(browser).send_keys(*pressed).perform()


def shown(browser: Chrome) -> list[str]:
    """Texts of the answers, in the order in which they stand."""
    return browser.execute_script(ANSWERS)  # at once: the next query may come between two questions


def saved(browser: Chrome) -> None:
    wait(lambda: browser.find_element(By.ID, "saved").text == "saved")


def next_query(browser: Chrome, before: list[str]) -> None:
    wait(lambda: browser.find_element(By.ID, "over").is_displayed() or shown(browser) not in (before, []))


def click(browser: Chrome, answer: int, field: int, value: int) -> None:
    browser.find_element(
        By.CSS_SELECTOR, f'button[data-answer="{answer}"][data-field="{field}"][data-value="{value}"]'
    ).click()


def forms(folder: Path, asked: Path) -> dict[str, Form]:
    store = folder / "annotations" / f"{Index.load(asked).digest[:16]}.sqlite"
    return {form.key: form for form in submitted_forms(store)}


def by_keyboard(browser: Chrome) -> list[str]:
    """A whole query without the mouse: 5, 4, 3 for each answer and its place; a reason; a change taken back."""
    texts = shown(browser)
    for number in range(len(texts)):
        keys(browser, "5", "4", "3", str(min(number + 1, 2)))
    keys(browser, Keys.ARROW_LEFT * len(texts), Keys.ARROW_UP * 3, "r", "clear and kind", Keys.ENTER)
    keys(browser, "1", "u")
    saved(browser)
    keys(browser, Keys.ENTER)
    next_query(browser, texts)
    return texts


def by_mouse(browser: Chrome) -> list[str]:
    """A whole query without the keyboard; the last answer is the best."""
    texts = shown(browser)
    for number in range(len(texts)):
        for field in range(len(DIMENSIONS)):
            click(browser, number, field, 1 + field)
        click(browser, number, len(DIMENSIONS), len(texts) - number)
    browser.find_element(By.ID, "submit").click()
    next_query(browser, texts)
    return texts


def test_everything_by_keyboard_and_by_mouse(tmp_path: Path, asked: Path, browser: Chrome, port: int) -> None:
    with command(tmp_path, asked, port) as process:
        begin(browser, port)
        said: dict[str, tuple[list[str], str]] = {}
        for way in (by_keyboard, by_mouse, by_keyboard):
            key = TEXTS[shown(browser)[0]][0]
            if key == "clip":
                wait(lambda: browser.execute_script(CLIP_SECONDS) > 0)
            browser.save_screenshot(str(tmp_path / f"{key}.png"))
            said[key] = (way(browser), way.__name__)
        assert browser.title == "Annotation", "no text of a record is run"
        browser.save_screenshot(str(tmp_path / "over.png"))
        browser.find_element(By.ID, "back").click()
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "button[aria-pressed=true]"))
        assert shown(browser) == list(said.values())[-1][0], "back shows the last one, filled in"
        keys(browser, Keys.ENTER)
        wait(lambda: browser.find_element(By.ID, "finish").is_displayed())
        browser.find_element(By.ID, "finish").click()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
        assert not [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]]
    found = forms(tmp_path, asked)
    assert set(found) == {group.key for group in GROUPS} == set(said)
    for key, (texts, way) in said.items():
        for number, text in enumerate(texts):
            place = TEXTS[text][1]
            scores = tuple(found[key].scores[name][place] for name in DIMENSIONS)
            if way == "by_keyboard":
                assert (found[key].ranks[place], scores) == (min(number + 1, 2), (5, 4, 3))
                assert found[key].reasons["helpfulness"][place] == ("" if number else "clear and kind")
            else:
                assert (found[key].ranks[place], scores) == (len(texts) - number, (1, 2, 3))
    (artifact,) = (tmp_path / "artifacts").glob("**/annotations.jsonl")
    assert len(artifact.read_text().splitlines()) == len(GROUPS)


def test_a_kill_in_the_middle_loses_nothing(tmp_path: Path, asked: Path, browser: Chrome, port: int) -> None:
    with command(tmp_path, asked, port) as process:
        begin(browser, port)
        by_mouse(browser)
        texts = shown(browser)
        keys(browser, "5", "4")
        saved(browser)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # the page goes on without its server, and says so
    keys(browser, "3", "1", "r")
    keys(browser, "written while nobody listened", Keys.ESCAPE)
    wait(lambda: "not saved yet" in browser.find_element(By.ID, "saved").text)
    with command(tmp_path, asked, port):
        saved(browser)
        assert len(forms(tmp_path, asked)) == 1
        # another browser window, which knows nothing of the first, finds everything
        browser.execute_script("localStorage.clear()")
        begin(browser, port)
        assert shown(browser) == texts
        pressed = browser.find_elements(By.CSS_SELECTOR, "button[aria-pressed=true]")
        assert [button.text for button in pressed] == ["5", "4", "3", "1"]
        reasons = [field.get_attribute("value") for field in browser.find_elements(By.CLASS_NAME, "reason")]
        assert "written while nobody listened" in reasons
        browser.save_screenshot(str(tmp_path / "again.png"))
