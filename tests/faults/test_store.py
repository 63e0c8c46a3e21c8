"""The store full, read-only, unreadable, gone, slow or out of order: what becomes of edits and of hosted images."""

from __future__ import annotations

import http.server
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.cluster.tiers import Gateway, Server
from tests.faults.callers import Caller, body
from tests.faults.conftest import REACHED_SECONDS, StartGateway
from tests.faults.proxy import Proxy, Then
from tests.object_store import ObjectStore
from tests.run_up import wait_for

BY_URL = body(response_format="url")
LARGE = body(256, response_format="url")  # 90 KB
FILE_BYTES = 2**16  # more than a log has, and a small picture
BUDGET = 6  # less than the store itself would take
FAILURES = "retouch_gateway_store_failures_total"


def url_of(caller: Caller) -> str:
    """Where its image is: it must have one, and nothing inline."""
    assert caller.end() == 200
    (image,) = caller.json["data"]
    assert "b64_json" not in image
    assert "warning" not in caller.json
    return str(image["url"])


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=30)


@contextmanager
def failing(gateway: Gateway, *images: Caller) -> Iterator[None]:
    """What is edited in here comes inline, with a warning; afterwards by URL again."""
    before = gateway.metric(FAILURES)
    yield
    for sent in (BY_URL, BY_URL | {"stream": True}):
        told = Caller(gateway.url, sent)
        assert told.end() == 200
        whole = told.events[-1] if "stream" in sent else told.json
        shown = whole if "stream" in sent else whole["data"][0]
        assert "url" not in shown
        assert shown["b64_json"]
        assert "store" in whole["warning"]
    replayed = 0
    for _ in range(2):  # and two that are the same do not block each other
        again = Caller(gateway.url, BY_URL, {"idempotency-key": f"failing-{before}"})
        assert again.end() == 200
        assert "warning" in again.json
        # It is, while the store is still asked for the first one's claim.
        replayed += "idempotent-replayed" in again.headers
    assert gateway.metric(FAILURES) - before == 4 - replayed


# A folder.


@dataclass(frozen=True)
class InFolder:
    gateway: Gateway
    folder: Path


@pytest.fixture(scope="module")
def one_folder(one_server: Server, start_gateway: StartGateway) -> InFolder:
    weak = str(Path(__file__).with_name("weak.py"))
    gateway = start_gateway(one_server.address, command=(weak, "-m", "retouch_gateway"))
    return InFolder(gateway, Path(gateway.settings["RETOUCH_GATEWAY_STORE"]))


@pytest.fixture
def stored(one_folder: InFolder, server: Server) -> InFolder:
    one_folder.gateway.wait_ready()
    return one_folder


def test_a_folder_that_is_read_only(stored: InFolder) -> None:
    url = url_of(Caller(stored.gateway.url, BY_URL))
    stored.folder.chmod(0o500)
    try:
        with failing(stored.gateway):
            assert get(url).status_code == 200
            assert httpx.delete(url, trust_env=False).status_code == 503
    finally:
        stored.folder.chmod(0o700)
    assert get(url_of(Caller(stored.gateway.url, BY_URL))).status_code == 200


def test_a_folder_that_may_not_be_entered(stored: InFolder) -> None:
    url = url_of(Caller(stored.gateway.url, BY_URL))
    stored.folder.chmod(0)
    try:
        with failing(stored.gateway):
            refused = get(url)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
    finally:
        stored.folder.chmod(0o700)
    assert get(url).status_code == 200


def test_a_folder_that_is_gone_is_made_again(stored: InFolder) -> None:
    url = url_of(Caller(stored.gateway.url, BY_URL))
    shutil.rmtree(stored.folder)
    assert get(url).status_code == 404
    assert get(url_of(Caller(stored.gateway.url, BY_URL))).status_code == 200


def test_a_mount_that_is_gone(stored: InFolder) -> None:
    url = url_of(Caller(stored.gateway.url, BY_URL))
    away = stored.folder.rename(stored.folder.with_name("away"))
    stored.folder.symlink_to(stored.folder.with_name("nowhere"))
    try:
        with failing(stored.gateway):
            assert get(url).status_code == 404
    finally:
        stored.folder.unlink()
        away.rename(stored.folder)
    assert get(url).status_code == 200


def test_a_store_that_is_full(stored: InFolder) -> None:
    """By the size that a file may have: the kernel refuses the write, as it does on a full disk."""
    pid = stored.gateway.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    before = {path.name for path in stored.folder.iterdir()}
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        told = Caller(stored.gateway.url, LARGE)
        assert told.end() == 200
        assert told.json["data"][0]["b64_json"]
        assert "warning" in told.json
        assert (
            get(url_of(Caller(stored.gateway.url, BY_URL))).status_code == 200
        )  # which still fits
        assert (
            len({path.name for path in stored.folder.iterdir()} - before) == 1
        )  # no half of the other
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert get(url_of(Caller(stored.gateway.url, LARGE))).status_code == 200


def test_a_process_without_descriptors(stored: InFolder) -> None:
    """What a store or a new connection needs is not to be had; who is connected is served, and nothing ends."""
    pid = stored.gateway.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with httpx.Client(base_url=stored.gateway.url, trust_env=False, timeout=60) as client:
        assert client.get("/healthz").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        try:
            answer = client.post("/v1/images/edits", json=BY_URL)
            assert answer.status_code == 200
            assert "warning" in answer.json()
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{stored.gateway.url}/healthz", trust_env=False, timeout=2)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    wait_for(stored.gateway.ready, REACHED_SECONDS, "ready again")
    assert get(url_of(Caller(stored.gateway.url, BY_URL))).status_code == 200


# A bucket.


@dataclass(frozen=True)
class InBucket:
    gateway: Gateway
    line: Proxy
    bucket: ObjectStore


@pytest.fixture(scope="module")
def one_bucket(
    one_server: Server,
    start_gateway: StartGateway,
    start_proxy: Callable[[int], Proxy],
    bucket: ObjectStore,
) -> InBucket:
    line = start_proxy(httpx.URL(bucket.url).port or 80)
    gateway = start_gateway(
        one_server.address,
        store=f"s3://{bucket.bucket}/images",
        variables=ObjectStore(f"http://127.0.0.1:{line.port}").variables,
        TIMEOUT=str(BUDGET),
    )
    return InBucket(gateway, line, bucket)


@pytest.fixture
def shared(one_bucket: InBucket, server: Server) -> Iterator[InBucket]:
    one_bucket.gateway.wait_ready()
    yield one_bucket
    one_bucket.line.heal()


def test_a_slow_bucket_is_only_slow(shared: InBucket) -> None:
    shared.line.slow(shared.line.down, delay=0.5)
    assert get(url_of(Caller(shared.gateway.url, BY_URL))).status_code == 200


def test_a_line_to_the_bucket_that_breaks(shared: InBucket) -> None:
    shared.line.cut(shared.line.up, Then.RESET, after=3_000)
    assert get(url_of(Caller(shared.gateway.url, BY_URL))).status_code == 200


def test_a_bucket_that_does_not_answer(shared: InBucket) -> None:
    """Nobody waits for it beyond the request's own budget."""
    before = shared.gateway.metric(FAILURES)
    url = url_of(Caller(shared.gateway.url, BY_URL))
    shared.line.cut(shared.line.down, Then.HOLD)
    waiting = [Caller(shared.gateway.url, sent) for sent in (BY_URL, BY_URL | {"stream": True})]
    assert get(url).status_code == 503
    for caller in waiting:
        assert caller.end() == 200
        assert any("warning" in line for line in caller.lines)
    assert int(waiting[0].headers["openai-processing-ms"]) < (BUDGET + 1) * 1000
    assert shared.gateway.metric(FAILURES) - before == 2
    shared.line.drop()
    shared.line.heal()
    assert get(url_of(Caller(shared.gateway.url, BY_URL))).status_code == 200


@pytest.mark.parametrize("status", [403, 503, 507])
def test_a_bucket_that_refuses(shared: InBucket, status: int) -> None:
    with refusing(status) as port:
        right, shared.line.target = shared.line.target, port
        shared.line.drop()
        try:
            with failing(shared.gateway):
                pass
        finally:
            shared.line.target = right
            shared.line.drop()
    assert get(url_of(Caller(shared.gateway.url, BY_URL))).status_code == 200


def test_a_bucket_that_is_gone(shared: InBucket) -> None:
    url = url_of(Caller(shared.gateway.url, BY_URL))
    address = f"{shared.bucket.url}/{shared.bucket.bucket}"
    assert httpx.post(f"{shared.bucket.url}/moto-api/reset", trust_env=False).status_code == 200
    try:
        with failing(shared.gateway):
            assert get(url).status_code == 404
    finally:
        assert httpx.put(address, trust_env=False).status_code == 200
    assert get(url_of(Caller(shared.gateway.url, BY_URL))).status_code == 200


@contextmanager
def refusing(status: int) -> Iterator[int]:
    """The port of a bucket that answers all with that status."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        do_PUT = do_GET = do_DELETE = do_POST = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
