"""Two gateways, two servers, one bucket: either gateway answers the other's URLs and replays its replies."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import BIN, OUTPUT, environment, free_ports
from tests.e2e.pictures import b64, photo, png
from tests.object_store import ObjectStore, run_object_store
from tests.run_up import wait_for

TTL_SECONDS = 4
BODY: dict[str, Any] = {"images": [b64(png(photo()))], "prompt": "make it brighter", "seed": 7}
BODY["num_inference_steps"] = 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with run_object_store() as store:
        yield store


@pytest.fixture(scope="module")
def gateways(bucket: ObjectStore) -> Iterator[list[httpx.Client]]:
    """A client of each, both ready; at the end SIGTERM ends all four with 0."""
    OUTPUT.mkdir(exist_ok=True)
    ports = [free_ports(), free_ports()]
    servers = ",".join(f"127.0.0.1:{each['RETOUCH_SERVER_PORT']}" for each in ports)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    clients = [_client(each) for each in ports]
    try:
        for i, each in enumerate(ports):
            variables = environment(
                **each,
                **bucket.variables,
                RETOUCH_GATEWAY_UPSTREAM=servers,
                RETOUCH_GATEWAY_STORE=f"s3://{bucket.bucket}/hosted",
                RETOUCH_GATEWAY_TTL=str(TTL_SECONDS),
            )
            for name in ("retouch-gateway", "retouch-server"):
                with (OUTPUT / f"{name}-{i}.log").open("w") as log:
                    processes[f"{name}-{i}"] = subprocess.Popen(
                        [BIN / name], stdout=log, stderr=log, env=variables
                    )
        wait_for(lambda: all(_ready(each, processes) for each in clients), 120, "ready")
        yield clients
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in processes.items():
            assert process.wait(30) == 0, f"{name}'s exit status; see its log in {OUTPUT}"
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        for client in clients:
            client.close()


def _client(ports: dict[str, str]) -> httpx.Client:
    url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
    return httpx.Client(base_url=url, timeout=60, trust_env=False)


def _ready(client: httpx.Client, processes: dict[str, subprocess.Popen[bytes]]) -> bool:
    for name, process in processes.items():
        assert process.poll() is None, (OUTPUT / f"{name}.log").read_text()
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def edit(client: httpx.Client, headers: dict[str, str] | None = None) -> httpx.Response:
    reply = client.post("/v1/images/edits", json=BODY, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply


def path_of(reply: httpx.Response) -> str:
    return httpx.URL(reply.json()["data"][0]["url"]).path


def test_either_answers_the_others_urls(gateways: list[httpx.Client], bucket: ObjectStore) -> None:
    one, other = gateways
    for here, there in ((one, other), (other, one)):
        path = path_of(edit(here))
        seen = [client.get(path) for client in (here, there)]
        assert [each.status_code for each in seen] == [200, 200]
        assert seen[0].content == seen[1].content
        assert seen[0].headers["etag"] == seen[1].headers["etag"]
        assert there.delete(path).status_code == 204
        assert here.get(path).status_code == 404


def test_an_expired_one_is_gone_from_the_bucket(
    gateways: list[httpx.Client], bucket: ObjectStore
) -> None:
    path = path_of(edit(gateways[0]))
    assert bucket.names().count(".png</Key>") >= 1
    wait_for(lambda: gateways[1].get(path).status_code == 410, TTL_SECONDS + 3, "410")
    wait_for(lambda: ".png</Key>" not in bucket.names(), 5, "gone from the bucket")
    assert gateways[0].get(path).status_code == 410


def test_either_replays_the_others_replies(
    gateways: list[httpx.Client], bucket: ObjectStore
) -> None:
    first = edit(gateways[0], {"idempotency-key": "once"})
    wait_for(lambda: _replayed(gateways[1], first), 5, "replayed")
    assert "once" not in bucket.names()


def _replayed(client: httpx.Client, first: httpx.Response) -> bool:
    again = client.post("/v1/images/edits", json=BODY, headers={"idempotency-key": "once"})
    if again.status_code == 409:  # it is kept just after it is sent
        return False
    assert again.content == first.content
    return again.headers["idempotent-replayed"] == "true"
