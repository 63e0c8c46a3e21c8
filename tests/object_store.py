"""moto's server: S3 over a real socket, in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.run_up import wait_for


@dataclass(frozen=True)
class ObjectStore:
    """Where it is, with one bucket in it."""

    url: str
    bucket: str = "pictures"

    @property
    def variables(self) -> dict[str, str]:
        """AWS's own, as a gateway gets them."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def names(self) -> str:
        """The bucket's listing, as XML."""
        listed = httpx.get(f"{self.url}/{self.bucket}", params={"list-type": 2}, trust_env=False)
        assert listed.status_code == 200
        return listed.text


@contextlib.contextmanager
def run_object_store() -> Iterator[ObjectStore]:
    """A fresh one, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    program = str(Path(sys.executable).parent / "moto_server")
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            store = ObjectStore(f"http://127.0.0.1:{port}")
            wait_for(lambda: _made(store, process), 60, "the object store")
            yield store
        finally:
            process.kill()


def _made(store: ObjectStore, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return httpx.put(f"{store.url}/{store.bucket}", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
