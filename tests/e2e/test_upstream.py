"""Two servers behind one gateway, by mTLS: their logs, one that is killed, none that is left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.local import total
from tests.certificates import Authority
from tests.e2e.conftest import BIN, environment, free_ports
from tests.e2e.pictures import b64, photo, png
from tests.run_up import wait_for

# For what takes a moment; a busy machine may stand still for seconds.
AT_ONCE, SOON = 5.0, 30.0
KEY = "rt_a-key-of-which-no-log-may-speak"
PROMPT = "make it night, says nobody's log"
PHOTO = b64(png(photo()))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Process:
    """A tier on ports of its own, its log in a file."""

    name: str
    log: Path
    ports: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self, **settings: Path | str) -> None:
        prefix = f"RETOUCH_{self.name.removeprefix('retouch-').upper()}_"
        given = {prefix + variable: str(value) for variable, value in settings.items()}
        variables = environment(**self.ports, **given)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / self.name], stdout=log, stderr=log, env=variables
            )

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def running(self) -> float:
        """Edits that hold a slot of this server."""
        page = httpx.get(self.url("RETOUCH_SERVER_METRICS_PORT") + "/metrics").text
        return total(page, "retouch_server_running")

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Its log's lines with that message; each line must be JSON."""
        whole = self.log.read_text().rpartition("\n")[0]  # what follows is being written
        read = [json.loads(line) for line in whole.splitlines()]
        return [line for line in read if line["message"] == message]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Trio:
    """The gateway, its two servers, and a client with a key."""

    gateway: Process
    servers: list[Process]
    client: httpx.Client

    def edit(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"images": [PHOTO], "prompt": PROMPT, "size": "256x256", **fields}
        return self.client.post("/v1/images/edits", json=body, headers=headers)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/readyz").status_code == 200
        return False


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    folder = tmp_path_factory.mktemp("upstream")
    ca = Authority(folder)
    keys = folder / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{digest}"\n')
    servers = [Process("retouch-server", folder / f"{i}.log", free_ports()) for i in range(2)]
    gateway = Process("retouch-gateway", folder / "gateway.log", free_ports())
    with contextlib.ExitStack() as stack:
        for i, server in enumerate(servers):
            pair = ca.issue(f"server-{i}")
            server.start(TLS_CERT=pair.cert, TLS_KEY=pair.key, TLS_CLIENT_CA=ca.cert)
            stack.callback(server.end)
        own = ca.issue("gateway")
        gateway.start(
            UPSTREAM=",".join(f"127.0.0.1:{s.ports['RETOUCH_SERVER_PORT']}" for s in servers),
            UPSTREAM_CA=ca.cert,
            UPSTREAM_CERT=own.cert,
            UPSTREAM_KEY=own.key,
            KEYS=keys,
            STORE=folder / "store",
            LOG_LEVEL="DEBUG",
        )
        stack.callback(gateway.end)
        bearer = {"authorization": f"Bearer {KEY}"}
        url = gateway.url("RETOUCH_GATEWAY_PORT")
        client = httpx.Client(base_url=url, headers=bearer, timeout=60, trust_env=False)
        trio = Trio(gateway, servers, stack.enter_context(client))
        for server in servers:
            wait_for(lambda server=server: server.lines("serving pocket"), 60, "a server")  # type: ignore[misc]
        wait_for(trio.ready, SOON, "ready")
        wait_for(lambda: len(gateway.lines("upstream ready")) == 2, SOON, "both found")
        yield trio


def test_one_edit_is_told_of_in_both_logs(trio: Trio) -> None:
    sent = {"x-request-id": "of-both", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    answer = trio.edit(sent, n=2, num_inference_steps=3)
    assert answer.status_code == 200, answer.text

    def told() -> list[dict[str, Any]]:
        lines = trio.gateway.lines("request")
        for server in trio.servers:
            lines += server.lines("call")
        return [line for line in lines if line.get("request_id") == "of-both"]

    wait_for(lambda: len(told()) == 2, SOON, "both lines")
    gateway, server = told()
    assert {gateway["trace_id"], server["trace_id"]} == {TRACE}
    assert (gateway["route"], gateway["status"]) == ("/v1/images/edits", 200)
    assert (gateway["key"], gateway["model"], gateway["images"]) == ("ada", "pocket", 2)
    assert (server["rpc"], server["code"], server["size"]) == ("Edit", "OK", "256x256")
    assert (server["model"], server["images"], server["steps"]) == ("pocket", 2, 6)
    assert 0 < server["denoise_ms"] <= server["ms"] <= gateway["ms"]


def test_no_log_has_what_is_nobodys_business(trio: Trio) -> None:
    url = trio.edit(num_inference_steps=1).json()["data"][0]["url"]
    assert httpx.get(url).status_code == 200
    assert trio.edit({"authorization": f"Bearer {KEY}x"}).status_code == 401
    assert trio.edit(num_inference_steps=0).status_code == 400
    for process in (trio.gateway, *trio.servers):
        log = process.log.read_text()
        assert process.lines("upstream ready") or process.lines("serving pocket")
        for secret in (KEY, "says nobody", PHOTO[:60], url.rsplit("/", 1)[1]):
            assert secret not in log


def test_one_is_killed_and_the_other_serves(trio: Trio) -> None:
    """In the order of this file: from here on there is one."""
    lost, kept = trio.servers
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(trio.edit, num_inference_steps=20) for _ in range(4)]
        wait_for(lambda: lost.running() > 0 and kept.running() > 0, SOON, "edits on both")
        lost.end()
        wait_for(
            lambda: 502 in [f.result().status_code for f in under_way if f.done()], SOON, "told"
        )
        answers = [future.result(60) for future in under_way]
    # 502: it had begun, and to do it again may be to kill the next.
    assert {answer.status_code for answer in answers} == {200, 502}
    told = [answer.headers["x-should-retry"] for answer in answers if answer.status_code == 502]
    assert set(told) == {"false"}
    for _ in range(3):
        assert trio.edit(num_inference_steps=1).status_code == 200


def test_one_that_stands_still_is_not_ready(trio: Trio) -> None:
    _, kept = trio.servers
    kept.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert trio.client.get("/readyz").status_code == 503
        assert time.monotonic() - began < AT_ONCE
    finally:
        kept.process.send_signal(signal.SIGCONT)
    wait_for(trio.ready, SOON, "ready again")


def test_when_none_is_left_it_is_said_at_once(trio: Trio) -> None:
    _, kept = trio.servers
    kept.end()
    wait_for(lambda: len(trio.gateway.lines("upstream not ready")) == 2, SOON, "its loss is known")
    for _ in range(3):
        began = time.monotonic()
        answer = trio.edit()
        assert time.monotonic() - began < AT_ONCE
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert trio.client.get("/healthz").status_code == 200
    reasons = [line["details"] for line in trio.gateway.lines("upstream call failed")]
    assert any("refused" in reason for reason in reasons), reasons
    trio.gateway.process.send_signal(signal.SIGTERM)
    assert trio.gateway.process.wait(SOON) == 0
