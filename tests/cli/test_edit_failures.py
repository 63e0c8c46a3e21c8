"""`retouch edit` when it fails: what it says, its exit status, what it tries again, and that no file is left."""

import asyncio
import json
import os
import shlex
import signal
import socket
import ssl
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.cli import fake_gateway
from tests.cli.conftest import Edit, made
from tests.cli.fake_gateway import DONE, PNG, Answer, FakeGateway, completed, event, failed, stream
from tests.run_up import wait_for
from tests.terminal import Terminal


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("n: must be 1; num_inference_steps: is wrong", "n", "-n: must be 1; --steps: is wrong"),
        ("size.width: must be 1 to 8", "size", "--size: width must be 1 to 8"),
        ("images[0]: is animated", "images[0]", "photo.png: is animated"),
        ("There is no model x", "model", "--model: There is no model x"),
        (
            "only with a guidance_scale above 1",
            "negative_prompt",
            "--negative-prompt: only with a --guidance-scale above 1",
        ),
        ("prompt: is too long", "prompt", "PROMPT: is too long"),
        ("nobody is to blame: really", None, "nobody is to blame: really"),
    ],
)
def test_a_fault_names_the_option(
    edit: Edit,
    gateway: FakeGateway,
    capsys: pytest.CaptureFixture[str],
    message: str,
    param: str | None,
    said: str,
) -> None:
    gateway.answers = [failed(400, message, param)]
    assert edit() == 3
    assert capsys.readouterr().err == f"retouch: {said}\n"
    assert made() == []


def test_a_failure_as_json(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [failed(400, "size: \x1b[31m is wrong", "size", x_request_id="req_1")]
    assert edit("photo.png", "night", "--json") == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "error": {
            "message": "--size: \x1b[31m is wrong",
            "exit": 3,
            "http": 400,
            "option": "--size",
            "request_id": "req_1",
        }
    }
    assert said.err == "retouch: --size: \\x1b[31m is wrong\n"
    assert "\x1b" not in said.out


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited; nobody does."""
    noted: list[float] = []

    async def note(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    return noted


def test_busy_is_tried_again_when_it_says(
    edit: Edit, gateway: FakeGateway, waits: list[float]
) -> None:
    gateway.answers = [
        failed(503, "not ready"),
        failed(503, "not ready", retry_after="0"),
        failed(429, "full", retry_after="7"),
        DONE,
    ]
    assert edit() == 0
    assert 0.375 <= waits[0] <= 0.5, "our own measure, where nothing is said"
    assert 0.75 <= waits[1] <= 1, "or nonsense"
    assert waits[2:] == [7]
    assert [body.count(PNG) for *_, body in gateway.requests] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (failed(429, "used up", retry_after="60", x_should_retry="false"), 5),
        (failed(429, "full", retry_after="60"), 5),  # longer than there is time
        (failed(503, "the image store is not ready", retry_after="9" * 9), 5),
        (Answer(503, b"<html>", {"retry-after": "60"}), 5),  # a proxy's
        (Answer(401, b"<html>"), 4),
        (failed(500, "failed", x_should_retry="false"), 1),
        (failed(502, "lost"), 1),
        (failed(504, "too long"), 1),
        (failed(413, "too large"), 3),
    ],
)
def test_others_are_not(edit: Edit, gateway: FakeGateway, answer: Answer, status: int) -> None:
    gateway.answers = [answer]
    assert edit("photo.png", "night", "--timeout", "5") == status
    assert len(gateway.requests) == 1
    assert made() == []


def test_busy_until_the_time_is_over(
    edit: Edit, gateway: FakeGateway, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [failed(503, "no server is ready"), stream(completed(), seconds=6)]
    assert edit("photo.png", "night", "--timeout", "5") == 5
    assert capsys.readouterr().err == "retouch: no server is ready\n"
    assert len(waits) == 1


def test_the_time_is_over(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [stream(completed(), seconds=1)]
    assert edit("photo.png", "night", "--timeout", "0.5") == 1
    assert capsys.readouterr().err == "retouch: not done within 0.5 s (--timeout)\n"
    assert made() == []


SSE = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (stream(), "sent 0 of 1 images"),
        (stream(b': step {"image_index":0,"step":1,"total":2}\n\n'), "sent 0 of 1 images"),
        (stream(completed()[:60]), "sent 0 of 1 images"),
        (stream(completed(b64_json="%%%")), "makes no sense"),
        (stream(completed(seed="many")), "makes no sense"),
        (stream(completed(seed=1e400)), "makes no sense"),
        (stream(completed(usage=None)), "makes no sense"),
        (stream(b"event: image_edit.completed\ndata: {\n\n"), "makes no sense"),
        (stream(b"event: image_edit.completed\ndata: []\n\n"), "makes no sense"),
        (stream(b": step nonsense\n\n"), "makes no sense"),
        (stream(event("error", {"error": {"message": "it broke", "code": 500}})), "it broke"),
        (stream(event("error", {"error": None})), "makes no sense"),
        (Answer(200, completed()[:60], {**SSE, "content-length": "9999"}), "lost http://"),
        (stream(b"event: error\ndata: " + b"[" * 50_000 + b"\n\n"), "makes no sense"),
        (Answer(400, b"[" * 50_000), "not a Retouch gateway: it answered 400"),
        (Answer(200, b"<html>hello"), "not a Retouch gateway: it answered 200"),
        (Answer(200, b"{}", {"content-type": "application/json"}), "not a Retouch gateway"),
        (Answer(500, b"<html>" + b"x" * 10**6), "not a Retouch gateway: it answered 500"),
        (Answer(404, b'{"error": "no"}'), "not a Retouch gateway: it answered 404"),
        (
            Answer(308, b"", {"location": "https://x/"}),
            "308 Permanent Redirect, which leads to https://x/",
        ),
        (Answer(308, b"", {"location": "https://x/\x1b[2J"}), r"\x1b"),
        (Answer(200, b"", {"content-type": "text/\x1b[2J"}), "not a Retouch gateway"),
    ],
)
def test_answers_that_are_none(
    edit: Edit,
    gateway: FakeGateway,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    said: str,
) -> None:
    gateway.answers = [answer]
    assert edit() == 1
    assert said in capsys.readouterr().err
    assert made() == []


def test_only_the_end_of_the_stream_is_lost(edit: Edit, gateway: FakeGateway) -> None:
    gateway.answers = [Answer(200, completed(), {**SSE, "content-length": "9999"})]
    assert edit() == 0
    assert made() == ["photo-edited.png"]


def test_a_refusal_in_the_middle_of_the_stream(edit: Edit, gateway: FakeGateway) -> None:
    error = {"error": {"message": "the result was refused", "param": None, "code": 400}}
    gateway.answers = [stream(event("error", error))]
    assert edit() == 3


def test_nobody_there(edit: Edit, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
    assert edit("photo.png", "night", "--url", url) == 6
    said = capsys.readouterr().err
    assert said == (
        f"retouch: cannot reach {url}: Connection refused. "
        "Is it running? `retouch up` starts one here\n"
    )


def test_a_proxy_is_used_but_for_this_machine(
    edit: Edit,
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HTTP_PROXY", gateway.url)
    monkeypatch.delenv("RETOUCH_URL")
    assert edit("photo.png", "night", "--url", "http://retouch.invalid/v1/") == 0
    assert gateway.requests[0][1] == "http://retouch.invalid/v1/images/edits"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert edit("photo.png", "night", "-f", "--url", f"{gateway.url}/v1") == 0
    for wrong in ("nonsense://me:secret@x", "http://me:secret@x:port"):
        monkeypatch.setenv("HTTP_PROXY", wrong)
        assert edit("photo.png", "night", "-f", "--url", "http://retouch.invalid") == 1
        said = capsys.readouterr().err
        assert "proxy or certificates are wrong" in said
        assert "secret" not in said


def test_ctrl_c_ends_a_shells_loop_too(gateway: FakeGateway, tmp_path: Path) -> None:
    """As whatever is told so by the signal itself; a status of 130 would end the one command alone."""
    (tmp_path / "photo.png").write_bytes(PNG)
    gateway.answers = [stream(completed(), seconds=3)]
    command = f"{shlex.quote(sys.executable)} -m retouch_cli edit photo.png night"
    loop = f"for each in 1 2; do {command}; echo $each: $? >> said; done"
    run = Terminal(["/bin/bash", "-c", loop], tmp_path, os.environ)
    wait_for(lambda: gateway.requests, 20, "the edit sent")
    os.write(run.descriptor, b"\x03")
    assert run.status() in (-signal.SIGINT, 130)
    assert len(gateway.requests) == 1
    assert not (tmp_path / "said").exists()
    assert run.output.endswith("Cancelled\r\n")


def test_a_certificate_is_trusted_by_the_environments_word_alone(
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with fake_gateway.running(context) as safe:
        assert edit("photo.png", "night", "--url", safe.url) == 6
        said = capsys.readouterr().err
        assert "certificate verify failed" in said
        assert "retouch up" not in said, "what runs there is not the question"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
        assert edit("photo.png", "night", "--url", safe.url) == 0
