"""Both tiers by mTLS: who is let in, and keys, certificates and authorities that change under load and lose no edit."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from bench.local import total
from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from tests.certificates import Authority, Pair
from tests.e2e.conftest import free_ports
from tests.e2e.pictures import b64, photo, png
from tests.e2e.test_upstream import Process
from tests.run_up import wait_for

pytestmark = pytest.mark.timeout(600)
BODY = {"images": [b64(png(photo(64, 64)))], "prompt": "x", "num_inference_steps": 1}


def put(source: Path | str, at: Path) -> None:
    """The file has that in it now, all at once."""
    part = at.with_suffix(".part")
    if isinstance(source, Path):
        shutil.copyfile(source, part)
    else:
        part.write_text(source)
    part.replace(at)


@dataclass
class Tiers:
    """A server and a gateway, and the files that they look at, in `folder`."""

    folder: Path
    server: Process
    gateway: Process
    client: httpx.Client
    statuses: list[int] = field(default_factory=list)

    def page(self, process: Process) -> str:
        tier = process.name.removeprefix("retouch-").upper()
        answer = httpx.get(process.url(f"RETOUCH_{tier}_METRICS_PORT") + "/metrics")
        return answer.text

    def reloads(self, process: Process, file: str, result: str) -> float:
        name = f"{process.name.replace('-', '_')}_file_reloads_total"
        return total(self.page(process), name, file=file, result=result)

    def outdated(self, process: Process) -> float:
        return total(self.page(process), f"{process.name.replace('-', '_')}_file_outdated")

    def expiry(self, process: Process, file: str) -> float:
        name = f"{process.name.replace('-', '_')}_certificate_expiry_timestamp_seconds"
        return total(self.page(process), name, file=file)

    def takes(self, process: Process, file: str, *changes: tuple[Path, Path]) -> None:
        """Put each there, and wait until the process has taken all up."""
        said = f"{file}: the new files are in force"
        before = len(process.lines(said))
        for source, name in changes:
            put(source, self.folder / name)
        wait_for(
            lambda: len(process.lines(said)) > before,
            60,
            f"{process.name} takes up {[name for _, name in changes]}",
        )
        assert self.outdated(process) == 0

    def edit_forever(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.statuses.append(self.client.post("/v1/images/edits", json=BODY).status_code)

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """Callers that send edit after edit, of which none may fail."""
        stop = threading.Event()
        callers = [threading.Thread(target=self.edit_forever, args=(stop,)) for _ in range(3)]
        for each in callers:
            each.start()
        try:
            yield
        finally:
            stop.set()
            for each in callers:
                each.join(60)
        assert not any(each.is_alive() for each in callers)
        assert len(self.statuses) > 3
        assert set(self.statuses) == {200}

    def answers(self, ca: Authority, pair: Pair | None) -> bool:
        """Whether the server answers a caller on a new connection; it is trusted by `ca`."""
        own = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair else (None, None)
        proof = grpc.ssl_channel_credentials(ca.cert.read_bytes(), *own)
        target = f"127.0.0.1:{self.server.ports['RETOUCH_SERVER_PORT']}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(target, proof, options) as channel:
            try:
                ImageEditStub(channel).ListModels(pb.ListModelsRequest(), timeout=60)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # it is late, and not refused
                    raise
                return False
            return True


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "old")


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory, old: Authority) -> Iterator[Tiers]:
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "gateway"):
        pair = old.issue(name)
        put(pair.cert, folder / f"{name}.pem")
        put(pair.key, folder / f"{name}.key")
        put(old.cert, folder / f"{name}-ca.pem")
    server = Process("retouch-server", folder / "server.log", free_ports())
    gateway = Process("retouch-gateway", folder / "gateway.log", free_ports())
    with contextlib.ExitStack() as stack:
        server.start(
            TLS_CERT=folder / "server.pem",
            TLS_KEY=folder / "server.key",
            TLS_CLIENT_CA=folder / "server-ca.pem",
            MAX_CONNECTION_AGE="10",
        )
        stack.callback(server.end)
        gateway.start(
            UPSTREAM=f"127.0.0.1:{server.ports['RETOUCH_SERVER_PORT']}",
            UPSTREAM_CERT=folder / "gateway.pem",
            UPSTREAM_KEY=folder / "gateway.key",
            UPSTREAM_CA=folder / "gateway-ca.pem",
            STORE=folder / "store",
        )
        stack.callback(gateway.end)
        url = gateway.url("RETOUCH_GATEWAY_PORT")
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.get("/readyz").status_code == 200
            return False

        wait_for(ready, 240, "ready")
        yield Tiers(folder, server, gateway, client)


def test_who_may_call(tiers: Tiers, old: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    assert tiers.answers(old, old.issue("caller"))
    assert not tiers.answers(old, None)
    assert not tiers.answers(old, stranger.issue("caller"))
    assert not tiers.answers(old, old.issue("late", days=0))
    assert not tiers.answers(stranger, old.issue("caller"))


def test_files_with_a_mistake_change_nothing(tiers: Tiers, old: Authority, tmp_path: Path) -> None:
    stranger, late = Authority(tmp_path, "stranger").issue("nobody"), old.issue("late", days=0)
    own = {  # to be put back
        name: tmp_path / name for name in ("server.pem", "server.key", "gateway.pem", "gateway.key")
    }
    for name, kept in own.items():
        shutil.copyfile(tiers.folder / name, kept)
    with tiers.under_load():
        put("-----BEGIN CERTIFICATE-----\nno\n", tiers.folder / "server.pem")
        put("", tiers.folder / "gateway-ca.pem")
        for process, file in ((tiers.server, "tls"), (tiers.gateway, "upstream_tls")):
            wait_for(lambda p=process, f=file: tiers.reloads(p, f, "failed"), 60, "it is seen")  # type: ignore[misc]
            assert tiers.outdated(process) == 1
        # A pair as it should be, but expired; and one that the server does not trust.
        put(late.key, tiers.folder / "server.key")
        put(late.cert, tiers.folder / "server.pem")
        put(stranger.key, tiers.folder / "gateway.key")
        put(stranger.cert, tiers.folder / "gateway.pem")
        put(old.cert, tiers.folder / "gateway-ca.pem")
        wait_for(lambda: "TLS_CERT: has expired" in tiers.server.log.read_text(), 60, "seen")
        wait_for(lambda: tiers.reloads(tiers.gateway, "upstream_tls", "ok"), 60, "it is tried")
        for process in (tiers.server, tiers.gateway):
            wait_for(lambda p=process: tiers.outdated(p) == 1, 5, "it is told")  # type: ignore[misc]
        assert tiers.answers(old, old.issue("caller"))
        tiers.takes(
            tiers.server,
            "tls",
            *((path, Path(name)) for name, path in own.items() if "server" in name),
        )
        tiers.takes(
            tiers.gateway,
            "upstream_tls",
            *((path, Path(name)) for name, path in own.items() if "gateway" in name),
        )


def test_all_changes_under_load_and_no_edit_is_lost(
    tiers: Tiers, old: Authority, tmp_path: Path
) -> None:
    """An authority is followed by another in four steps, each of which leaves both tiers able to talk."""
    new = Authority(tmp_path, "new")
    both = tmp_path / "both.pem"
    both.write_bytes(old.cert.read_bytes() + new.cert.read_bytes())
    server, gateway = new.issue("server", days=2), new.issue("gateway", days=3)
    with tiers.under_load():
        tiers.takes(tiers.server, "tls", (both, Path("server-ca.pem")))
        tiers.takes(tiers.gateway, "upstream_tls", (both, Path("gateway-ca.pem")))
        tiers.takes(
            tiers.server,
            "tls",
            *((server.cert, Path("server.pem")), (server.key, Path("server.key"))),
        )
        tiers.takes(
            tiers.gateway,
            "upstream_tls",
            *((gateway.cert, Path("gateway.pem")), (gateway.key, Path("gateway.key"))),
        )
        tiers.takes(tiers.server, "tls", (new.cert, Path("server-ca.pem")))
        tiers.takes(tiers.gateway, "upstream_tls", (new.cert, Path("gateway-ca.pem")))
    assert tiers.expiry(tiers.server, "tls_cert") > tiers.expiry(tiers.server, "tls_client_ca")
    assert tiers.expiry(tiers.gateway, "upstream_cert") > tiers.expiry(tiers.server, "tls_cert")
    assert tiers.answers(new, new.issue("caller"))
    assert not tiers.answers(new, old.issue("caller"))
    assert not tiers.answers(old, new.issue("caller"))
