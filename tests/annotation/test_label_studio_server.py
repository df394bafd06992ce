"""A real Label Studio server: our page and tasks go in over its API, an annotation is made, and its export is read.

`MMRLHF_LABEL_STUDIO` names the program of an environment of its own: `python -m venv DIR && DIR/bin/pip install
label-studio`, then `MMRLHF_LABEL_STUDIO=DIR/bin/label-studio`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from stand_ins.annotators import filled, ranking, rating, texts, unranked
from stand_ins.browser import chromium

from mmrlhf.annotation.form_files import read_forms
from mmrlhf.annotation.label_studio_project import write_projects
from mmrlhf.shapes.draw import encode_video
from mmrlhf.types import Media

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

VARIABLE = "MMRLHF_LABEL_STUDIO"
WHO = {"email": "ann@example.org", "password": "annotate-1"}
CLIP = Media("video", ("mp4",), (encode_video(np.full((8, 48, 64, 3), 120, np.uint8)),))


class Server:
    """A server of its own, as somebody who is signed in."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = httpx.Client(base_url=address, trust_env=False, timeout=120, follow_redirects=True)

    def sign_in(self) -> None:
        self.client.get("/user/login/")
        form = {**WHO, "csrfmiddlewaretoken": self.client.cookies["csrftoken"]}
        answer = self.client.post("/user/login/", data=form, headers={"Referer": f"{self.address}/user/login/"})
        assert answer.status_code == 200 and "login" not in str(answer.url)
        self.client.headers.update({"X-CSRFToken": self.client.cookies["csrftoken"], "Referer": f"{self.address}/"})

    def ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self.client.request(method, path, **more)
        assert answer.status_code in (200, 201), answer.text[:2000]
        return answer.json()

    def project(self, folder: Path, media: Path) -> int:
        """A project of what `stage=annotate` wrote, as its README.txt says."""
        content = {"title": folder.name, "label_config": (folder / "config.xml").read_text()}
        number = self.ask("POST", "/api/projects", json=content)["id"]
        storage = {"project": number, "path": str(media), "use_blob_urls": True, "title": "media"}
        self.ask("POST", "/api/storages/localfiles", json=storage)
        tasks = json.loads((folder / "tasks.json").read_text())
        assert self.ask("POST", f"/api/projects/{number}/import", json=tasks)["task_count"] == len(tasks)
        return number

    def tasks(self, project: int) -> list[dict[str, Any]]:
        found = self.ask("GET", "/api/tasks", params={"project": project})
        return found["tasks"] if isinstance(found, dict) else found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects: three answers about a picture, one query with a proposal; two answers about a clip."""
    folder = tmp_path_factory.mktemp("projects")
    groups = [unranked("proposed"), unranked("plain"), unranked("clip", 2, media=(CLIP,))]
    write_projects(
        folder, groups, lambda *refused: pytest.fail(str(refused)),
        {"proposed": filled(groups[0], "rm-1", (2, 1, 2), kind="model")},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[Server]:
    program = os.environ.get(VARIABLE, "")
    if not program:
        pytest.skip(f"needs a Label Studio of its own: {VARIABLE}=DIR/bin/label-studio")
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LABEL_STUDIO_BASE_DATA_DIR": str(folder), "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "", "COLLECT_ANALYTICS": "False", "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(exported),
    }  # fmt: skip
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    command += ["--username", WHO["email"], "--password", WHO["password"]]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    found = Server(f"http://127.0.0.1:{port}")
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if found.client.get("/api/version").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        found.sign_in()
        yield found
    finally:
        found.client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def test_an_annotation_goes_in_over_the_api_and_comes_out_of_the_export(
    server: Server, exported: Path, tmp_path: Path
) -> None:
    project = server.project(exported / "1-images-3-answers", exported / "media")
    task = next(task for task in server.tasks(project) if task["data"]["key"] == "proposed")
    shown = server.client.get(task["data"]["media_0"])
    assert shown.status_code == 200 and shown.headers["content-type"] == "image/jpeg"
    said = [
        rating("helpfulness", 0, 4), texts("ethics_reason_2", "response_2", "rude", "rude"),
        ranking({"rank_1": ["B"], "rank_3": ["A", "C"], "_": []}),
    ]  # fmt: skip
    server.ask("POST", f"/api/tasks/{task['id']}/annotations", json={"result": said, "lead_time": 12.5})
    other = next(task for task in server.tasks(project) if task["data"]["key"] == "plain")
    server.ask("POST", f"/api/tasks/{other['id']}/annotations", json={"result": [], "was_cancelled": True})
    kept = server.ask(
        "GET", f"/api/projects/{project}/export", params={"exportType": "JSON", "download_all_tasks": "true"}
    )
    (tmp_path / "export.json").write_text(json.dumps(kept))
    refused: list[str] = []
    person, model = read_forms(tmp_path / "export.json", lambda where, reason: refused.append(reason))
    order = task["data"]["order"]
    assert refused == ["skipped by the annotator"]
    assert [person.ranks[place] for place in order] == [3, 1, 3] and person.scores["helpfulness"][order[0]] == 4
    assert person.reasons["ethics"][order[2]] == "rude" and person.seconds == 12.5
    assert "with the proposal of rm-1 before it" in person.origin
    assert (model.kind, model.annotator, model.ranks) == ("model", "rm-1", (2, 1, 2))


@pytest.mark.parametrize("name", ["1-images-3-answers", "1-clips-2-answers"])
def test_the_page_opens_in_a_browser(server: Server, exported: Path, tmp_path: Path, name: str) -> None:
    """Every field is on it, pictures and clips are shown, and what is clicked there is what is read."""
    project = server.project(exported / name, exported / "media")
    task = server.tasks(project)[0]
    with chromium(tmp_path / "profile") as browser:
        browser.get(f"{server.address}/user/login/")
        browser.find_element(By.NAME, "email").send_keys(WHO["email"])
        browser.find_element(By.NAME, "password").send_keys(WHO["password"] + Keys.ENTER)
        browser.get(f"{server.address}/projects/{project}/data?task={task['id']}")
        size = len(task["data"]["order"])
        stars = _wait(browser, ".ant-rate, .lsf-rating, [class*=rating]", 3 * size)
        browser.set_window_size(1500, 2600)
        time.sleep(3)
        browser.save_screenshot(str(tmp_path / f"{name}.png"))
        assert len(stars) >= 3 * size
        media = (
            "[...document.querySelectorAll('img, video, canvas')].map(e => e.naturalWidth || e.videoWidth || e.width)"
        )
        assert max(browser.execute_script(f"return {media}"), default=0) > 7


def _wait(browser: Any, selector: str, number: int, seconds: float = 90) -> list[Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        if len(found) >= number:
            return found
        time.sleep(0.3)
    raise AssertionError(f"only {len(found)} of {selector}")
