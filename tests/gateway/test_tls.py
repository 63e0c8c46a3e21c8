"""TLS and mTLS to a server, over real channels; certificates that are wrong, and files that are none."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from retouch.v1 import image_edit_pb2_grpc
from retouch_gateway import certificates, upstream, watched
from retouch_gateway.channels import credentials
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings, SettingsError
from tests.certificates import Authority, Pair
from tests.gateway.conftest import SERVICE, Echo, StartGateway, error_of
from tests.gateway.several import until


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Holding(Echo):
    """An echo whose edits wait for `hold`, as it is when they come."""

    hold: asyncio.Event | None = None

    async def Edit(self, request: Any, context: Any) -> Any:
        self.started.set()
        if self.hold:
            await self.hold.wait()
        return await super().Edit(request, context)


@pytest.fixture
def echo() -> Holding:
    return Holding()


@pytest_asyncio.fixture(loop_scope="session")
async def target(ca: Authority, echo: Echo) -> AsyncIterator[str]:
    """Where an echo listens that asks its callers for a certificate."""
    pair = ca.issue("server")
    server, checks = grpc.aio.server(), health.aio.HealthServicer()
    image_edit_pb2_grpc.add_ImageEditServicer_to_server(echo, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    own = [(pair.key.read_bytes(), pair.cert.read_bytes())]
    proof = grpc.ssl_server_credentials(own, ca.cert.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", proof)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_who_proves_itself_is_served(start: StartGateway, ca: Authority, target: str) -> None:
    own = ca.issue("gateway")
    gateway = await start(
        upstream=target, upstream_ca=ca.cert, upstream_cert=own.cert, upstream_key=own.key
    )
    assert (await gateway.edit()).status_code == 200
    assert (await gateway.client.get("/readyz")).status_code == 200


async def test_the_metrics_say_when_certificates_expire(
    start: StartGateway, ca: Authority, target: str
) -> None:
    own = ca.issue("gateway")
    gateway = await start(
        upstream=target, upstream_ca=ca.cert, upstream_cert=own.cert, upstream_key=own.key
    )
    for file, path in (("upstream_ca", ca.cert), ("upstream_cert", own.cert)):
        said = gateway.value("certificate_expiry_timestamp_seconds", file=file)
        assert (
            said
            == x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
        )
        assert 0 < said - time.time() < 2 * 86400


def test_of_a_chain_the_first_to_expire_counts_and_of_authorities_the_last(ca: Authority) -> None:
    near, far = ca.issue("near", days=3), ca.issue("far", days=30)
    both = ca.folder / "both.pem"
    both.write_bytes(far.cert.read_bytes() + near.cert.read_bytes())
    metrics = Metrics()
    settings = Settings(
        store=str(ca.folder), upstream_ca=both, upstream_cert=both, upstream_key=far.key
    )
    certificates.tell(settings, metrics)

    def days(file: str) -> float:
        name = "retouch_gateway_certificate_expiry_timestamp_seconds"
        when = metrics.registry.get_sample_value(name, {"file": file})
        assert when
        return (when - time.time()) / 86400

    assert 2.9 < days("upstream_cert") < 3.1
    assert 29.9 < days("upstream_ca") < 30.1


def test_a_certificate_that_cannot_be_read_has_no_expiry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An alert on 1970 would be a lie."""
    (tmp_path / "ca.pem").write_text("-----BEGIN TRUSTED CERTIFICATE-----\n")
    metrics = Metrics()
    settings = Settings(store=str(tmp_path), upstream_ca=tmp_path / "ca.pem")
    certificates.tell(settings, metrics)
    [said] = caplog.messages
    assert said.startswith("upstream_ca: when it expires cannot be read: ")
    assert b"expiry_timestamp_seconds{file" not in generate_latest(metrics.registry)


def no_certificate(ca: Authority) -> dict[str, Any]:
    return {"upstream_ca": ca.cert}


def no_tls(_ca: Authority) -> dict[str, Any]:
    return {}


def strangers(ca: Authority) -> tuple[Authority, Authority]:
    folder = ca.folder / "other"
    folder.mkdir()
    return ca, Authority(folder)


def another_authority_for_the_server(ca: Authority) -> dict[str, Any]:
    ca, other = strangers(ca)
    own = ca.issue("gateway")
    return {"upstream_ca": other.cert, "upstream_cert": own.cert, "upstream_key": own.key}


def another_authority_for_the_gateway(ca: Authority) -> dict[str, Any]:
    ca, other = strangers(ca)
    own = other.issue("gateway")
    return {"upstream_ca": ca.cert, "upstream_cert": own.cert, "upstream_key": own.key}


def the_systems_roots(ca: Authority) -> dict[str, Any]:
    own = ca.issue("gateway")
    return {"upstream_tls": True, "upstream_cert": own.cert, "upstream_key": own.key}


@pytest.mark.parametrize(
    "wrong",
    [
        no_certificate,
        no_tls,
        another_authority_for_the_server,
        another_authority_for_the_gateway,
        the_systems_roots,
    ],
)
async def test_whoever_does_not_is_not(
    start: StartGateway,
    ca: Authority,
    target: str,
    wrong: Callable[[Authority], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = await start(upstream=target, **wrong(ca))
    began = time.monotonic()
    error_of(await gateway.edit(), 503)
    error_of(await gateway.client.get("/readyz"), 503)
    assert time.monotonic() - began < 5  # it is waited for as briefly as where nobody listens
    assert [vars(r) for r in caplog.records if r.name == "retouch_gateway.target"], "no word of why"


async def test_a_server_by_another_name_is_not_trusted(start: StartGateway, ca: Authority) -> None:
    pair = ca.issue("elsewhere", "192.0.2.1")
    server = grpc.aio.server()
    own = [(pair.key.read_bytes(), pair.cert.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(own))
    await server.start()
    gateway = await start(upstream=f"127.0.0.1:{port}", upstream_ca=ca.cert)
    error_of(await gateway.edit(), 503)
    await server.stop(0)


CONNECTS = """
import asyncio, sys
from retouch_gateway import channels
from retouch_gateway.settings import Settings
settings = Settings()
async def connect():
    trusting = channels.credentials(settings)
    async with channels.channel(settings.upstream, trusting, 2**20) as channel:
        state = channel.get_state(try_to_connect=True)
        while state.name not in ("READY", "TRANSIENT_FAILURE"):
            await channel.wait_for_state_change(state)
            state = channel.get_state()
        print(state.name)
asyncio.run(connect())
"""


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_systems_roots_are_what_the_system_says(
    ca: Authority, target: str, trusted: bool
) -> None:
    """In a process of its own: gRPC reads them once. It has a variable to say where the system keeps them."""
    own, roots = ca.issue("gateway"), ca.folder / "roots"
    roots.mkdir()
    known = ca if trusted else Authority(roots)
    (roots / "ca.pem").write_bytes(known.cert.read_bytes())
    variables = {
        "RETOUCH_GATEWAY_UPSTREAM": target,
        "RETOUCH_GATEWAY_UPSTREAM_TLS": "true",
        "RETOUCH_GATEWAY_UPSTREAM_CERT": str(own.cert),
        "RETOUCH_GATEWAY_UPSTREAM_KEY": str(own.key),
        "GRPC_SYSTEM_SSL_ROOTS_DIR": str(roots),
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONNECTS, env=ours | variables, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    assert said.decode().strip() == ("READY" if trusted else "TRANSIENT_FAILURE")


async def test_a_renewal_that_fails_is_told_and_the_next_is_made(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.02)
    file, metrics = ca.folder / "trusted.pem", Metrics()
    file.write_bytes(ca.cert.read_bytes())
    found = certificates.Certificates(Settings(store=str(ca.folder), upstream_ca=file), metrics)
    way = upstream.Upstream(["localhost:1"], found.credentials, 2**20, metrics)
    renewed = list[grpc.ChannelCredentials | None]()

    async def renew(made: grpc.ChannelCredentials | None) -> None:
        renewed.append(made)
        if len(renewed) == 1:
            raise RuntimeError("can't start new thread")

    def outdated() -> float | None:
        given = {"file": "upstream_tls"}
        return metrics.registry.get_sample_value("retouch_gateway_file_outdated", given)

    monkeypatch.setattr(way, "renew", renew)
    renewing = asyncio.create_task(found.renew_forever(way))
    file.write_bytes(ca.cert.read_bytes() * 2)
    await until(lambda: caplog.messages == ["upstream_tls: the new files are not in force"], 10)
    assert outdated() == 1
    file.write_bytes(ca.cert.read_bytes() * 3)
    await until(lambda: len(renewed) == 2 and outdated() == 0, 10)
    renewing.cancel()
    await way.close()


async def test_a_gateway_whose_certificate_nobody_took_is_ready_by_the_next(
    start: StartGateway, ca: Authority, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.02)
    _, other = strangers(ca)
    stranger, own = other.issue("stranger"), ca.issue("next")
    gateway = await start(
        upstream=target,
        upstream_ca=ca.cert,
        upstream_cert=stranger.cert,
        upstream_key=stranger.key,
    )
    error_of(await gateway.client.get("/readyz"), 503)
    assert gateway.value("upstream_ready", target=target) == 0
    stranger.key.write_bytes(own.key.read_bytes())
    stranger.cert.write_bytes(own.cert.read_bytes())
    await until(lambda: gateway.value("upstream_ready", target=target) == 1, 30)
    assert (await gateway.client.get("/readyz")).status_code == 200
    await until(lambda: gateway.value("file_outdated", file="upstream_tls") == 0, 30)


def test_plain_text_needs_none(tmp_path: Path) -> None:
    assert credentials(Settings(store=str(tmp_path))) is None


@pytest.mark.parametrize("wrong", ["ca", "cert", "key", "pair", "empty"])
def test_files_that_are_none_are_told_at_the_start(ca: Authority, wrong: str) -> None:
    own, other = ca.issue("gateway"), ca.issue("other")
    garbage = ca.folder / "garbage.pem"
    garbage.write_text("" if wrong == "empty" else "-----BEGIN CERTIFICATE-----\nno\n")
    settings = Settings(
        store=str(ca.folder),
        upstream_ca=garbage if wrong in ("ca", "empty") else ca.cert,
        upstream_cert=garbage if wrong == "cert" else own.cert,
        upstream_key={"key": garbage, "pair": other.key}.get(wrong, own.key),
    )
    variable = "CA" if wrong in ("ca", "empty") else "KEY"
    with pytest.raises(SettingsError, match=f"^RETOUCH_GATEWAY_UPSTREAM_{variable}: "):
        credentials(settings)


async def test_new_files_are_used_once_servers_take_them_and_edits_under_way_end_as_they_began(
    start: StartGateway,
    ca: Authority,
    target: str,
    echo: Holding,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(certificates, "LATE_SECONDS", 0.1)
    _, other = strangers(ca)
    cert, key = ca.folder / "own.pem", ca.folder / "own.key"

    def becomes(pair: Pair) -> None:
        for source, at in ((pair.key, key), (pair.cert, cert)):
            at.with_suffix(".part").write_bytes(source.read_bytes())
            at.with_suffix(".part").replace(at)

    becomes(ca.issue("gateway"))
    gateway = await start(
        upstream=target, upstream_ca=ca.cert, upstream_cert=cert, upstream_key=key
    )
    expiry = gateway.value("certificate_expiry_timestamp_seconds", file="upstream_cert")
    echo.hold = asyncio.Event()
    under_way = asyncio.ensure_future(gateway.edit())
    await echo.started.wait()
    go, echo.hold = echo.hold, None
    becomes(other.issue("stranger"))
    await until(lambda: "no connection by the new files yet" in caplog.text, 30)
    assert gateway.value("file_outdated", file="upstream_tls") == 1
    assert (await gateway.edit()).status_code == 200  # by the old ones
    becomes(ca.issue("next", days=5))
    await until(lambda: gateway.value("file_outdated", file="upstream_tls") == 0, 30)
    after = gateway.value("certificate_expiry_timestamp_seconds", file="upstream_cert")
    assert after > expiry + 3 * 86400
    assert (await gateway.edit()).status_code == 200
    assert not under_way.done()
    await asyncio.sleep(
        upstream.RETIRE_SECONDS * 2
    )  # it is looked at whether the old ones are of use yet
    go.set()
    assert (await under_way).status_code == 200
