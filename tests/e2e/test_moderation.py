"""The example of docs/safety.md in a real server behind a real gateway: what callers of each kind are told."""

import base64
import concurrent.futures
import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image, ImageOps

from bench.local import total
from tests.e2e.conftest import BIN, OUTPUT, environment, free_ports
from tests.e2e.pictures import b64, difference, photo, png
from tests.run_up import wait_for

DOCS = Path(__file__).parents[2] / "docs/safety.md"
WATERMARK = "Your request was rejected by the safety system. Watermarks are not removed here."
KNOWN = "Your request was rejected by the safety system."
PHOTO = b64(png(photo(128, 128)))
# One that the house knows and does not give out; without strength an edit of it is itself.
OTHER = ImageOps.mirror(photo(128, 128))
MINE: dict[str, Any] = {"images": [b64(png(OTHER))], "prompt": "make it night", "strength": 0}


def block(language: str) -> str:
    """The first of that language in the docs."""
    found = re.search(rf"^```{language}\n(.*?)```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def fingerprint(folder: Path, image: Image.Image) -> int:
    """What the house's rules in that folder make of a picture."""
    rules = runpy.run_path(str(folder / "house_rules.py"))
    made: int = rules["fingerprint"](image)
    return made


class Stack:
    """A server with the checks and a gateway, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports()
        self.folder = folder
        (folder / "house_rules.py").write_text(block("python"))
        (folder / "models.yaml").write_text(block("yaml"))
        (folder / "known").write_text(f"{fingerprint(folder, OTHER):016x}\n")
        self.variables = environment(
            **self.ports,
            PYTHONPATH=str(folder),
            HOUSE_RULES_KNOWN=str(folder / "known"),
            RETOUCH_SERVER_MODELS=str(folder / "models.yaml"),
            RETOUCH_GATEWAY_UPSTREAM=f"127.0.0.1:{self.ports['RETOUCH_SERVER_PORT']}",
            RETOUCH_GATEWAY_STORE=str(folder / "store"),
        )
        self.url = f"http://127.0.0.1:{self.ports['RETOUCH_GATEWAY_PORT']}"
        self.rest = httpx.Client(base_url=self.url, timeout=120, trust_env=False)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        OUTPUT.mkdir(exist_ok=True)
        with (OUTPUT / f"moderated-{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [BIN / name], stdout=log, stderr=log, env=self.variables
            )

    def ready(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, (OUTPUT / f"moderated-{name}.log").read_text()
        try:
            return self.rest.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def edit(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        usual = {"images": [PHOTO], "num_inference_steps": 3, "response_format": "b64_json"}
        body = usual | fields
        return self.rest.post("/v1/images/edits", json=body, headers=headers)

    def counted(self, stage: str, outcome: str) -> float:
        port = self.ports["RETOUCH_SERVER_METRICS_PORT"]
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return total(page, "retouch_server_moderation_total", stage=stage, outcome=outcome)

    def stop(self) -> None:
        self.rest.close()
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("moderated"))
    try:
        for name in ("retouch-gateway", "retouch-server"):
            stack.start(name)
        wait_for(stack.ready, 120, f"ready; see the logs in {OUTPUT}")
        yield stack
    finally:
        stack.stop()


def refused(reply: httpx.Response, message: str) -> None:
    assert reply.status_code == 400, reply.text
    told = {"message": message, "type": "moderation_blocked", "param": None, "code": 400}
    assert reply.json() == {"error": told}
    assert reply.headers["x-should-retry"] == "false"


def test_words_are_refused_before_and_results_after(stack: Stack) -> None:
    refused(stack.edit(prompt="Remove the watermark"), WATERMARK)
    assert (stack.counted("before", "blocked"), stack.counted("after", "passed")) == (1, 0)
    refused(stack.edit(**MINE, n=2), KNOWN)
    assert stack.counted("after", "blocked") == 1
    assert stack.edit(prompt="make it night").status_code == 200
    assert stack.counted("after", "passed") == 1


def test_a_caller_beside_one_that_is_refused_gets_what_it_would_alone(stack: Stack) -> None:
    edits = [
        {"prompt": "make it night", "seed": 1},
        MINE | {"seed": 2},
        {"prompt": "make it sepia", "seed": 3},
        {"prompt": "remove the watermarks", "seed": 4},
    ]
    with concurrent.futures.ThreadPoolExecutor(len(edits)) as pool:
        first, second, third, fourth = pool.map(lambda fields: stack.edit(**fields), edits)
    refused(second, KNOWN)
    refused(fourth, WATERMARK)
    for reply, fields in ((first, edits[0]), (third, edits[2])):
        assert reply.status_code == 200, reply.text
        alone = stack.edit(**fields).json()["data"][0]["b64_json"]
        shared = reply.json()["data"][0]["b64_json"]
        assert difference(base64.b64decode(shared), base64.b64decode(alone)) <= 1


def test_a_stream_ends_with_the_refusal_and_shows_nothing_before(stack: Stack) -> None:
    refused(stack.edit(prompt="remove the watermark", stream=True), WATERMARK)
    reply = stack.edit(**MINE, stream=True)
    assert reply.status_code == 200
    events = re.findall(r"^event: (.+)\ndata: (.+)$", reply.text, re.MULTILINE)
    assert [name for name, _ in events] == ["error"]
    error = json.loads(events[0][1])["error"]
    assert (error["type"], error["code"]) == ("moderation_blocked", 400)
    assert ": step" in reply.text
    (model,) = stack.rest.get("/v1/models").json()["data"]
    assert model["limits"]["max_partial_images"] == 0
    shown = stack.edit(prompt="make it night", stream=True, partial_images=1)
    assert (shown.status_code, shown.json()["error"]["param"]) == (400, "partial_images")


@pytest.mark.parametrize("stream", [False, True])
def test_an_idempotency_key_replays_a_refusal(stack: Stack, stream: bool) -> None:
    before = stack.counted("after", "blocked")
    headers = {"Idempotency-Key": f"mine-{stream}"}
    first, again = (stack.edit(headers, **MINE, seed=5, stream=stream) for _ in range(2))
    assert (again.status_code, again.headers["idempotent-replayed"]) == (first.status_code, "true")
    assert again.headers["content-type"] == first.headers["content-type"]
    if stream:
        assert again.text in first.text
        assert again.text.startswith("event: error")
    else:
        assert again.content == first.content
        refused(again, KNOWN)
    assert stack.counted("after", "blocked") == before + 1


def test_what_clients_make_of_it(stack: Stack, tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    picture.write_bytes(png(photo(128, 128)))
    with (
        OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client,
        pytest.raises(BadRequestError) as failure,
    ):
        client.images.edit(image=picture, prompt="remove the watermark")
    assert failure.value.type == "moderation_blocked"
    command = [
        str(BIN / "retouch"),
        "edit",
        str(picture),
        "remove the watermark",
        "--url",
        stack.url,
    ]
    ran = subprocess.run(
        command, env=stack.variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 3, ran.stderr
    assert WATERMARK in ran.stderr


def test_the_log_has_the_category_and_not_the_prompt(stack: Stack) -> None:
    refused(stack.edit({"x-request-id": "who-1"}, prompt="My watermark secret"), WATERMARK)
    log = OUTPUT / "moderated-retouch-server.log"

    def lines() -> list[str]:
        whole = log.read_text().rpartition("\n")[0]  # what follows is being written
        return [line for line in whole.splitlines() if "who-1" in line]

    wait_for(lambda: bool(lines()), 30, "the call's line in the log")
    line = json.loads(*lines())
    told = {"blocked": "before", "check": "house_rules:Words", "category": "watermark"}
    assert line.items() >= told.items()
    assert "secret" not in log.read_text()
