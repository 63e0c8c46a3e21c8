"""`helm test` does what it says: its pod's own script, run before real tiers, with and without keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from socket import create_server
from urllib.parse import urlsplit

import pytest

from tests.browser import stack
from tests.browser.stack import Gateway, Server
from tests.helm import container, existing
from tests.helm.chart import Helm, Values
from tests.helm.objects import named, pods

Secrets = dict[str, dict[str, bytes]]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with stack.server("pocket", "helm-server") as running:
        yield running


@pytest.fixture(scope="module")
def open_gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    store = tmp_path_factory.mktemp("store")
    with stack.gateway(server, "helm-open", store) as running:
        yield running


@pytest.fixture(scope="module")
def keyed_gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys.toml").write_text(existing.KEYS)
    # As behind a proxy that serves it below a path: the script cannot ask by that address.
    variables = {
        "RETOUCH_GATEWAY_KEYS": str(folder / "keys.toml"),
        "RETOUCH_GATEWAY_PUBLIC_URL": "https://edits.example/pictures",
    }
    with stack.gateway(server, "helm-keyed", folder / "store", **variables) as running:
        yield running


def run(helm: Helm, values: Values, url: str, secrets: Secrets, seconds: str = "120") -> Done:
    """The test pod's container as it would run, but that the gateway's Service is at `url`."""
    manifests = helm.render(values)
    (pod,) = [each for each in pods(manifests) if each.owner["kind"] == "Pod"]
    assert pod.owner["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod.spec["restartPolicy"] == "Never"
    variables = container.environment(manifests, pod.main, secrets)
    asked = urlsplit(variables["RETOUCH_URL"])
    assert asked.hostname
    service = named(manifests, "Service", asked.hostname)
    assert asked.port in [port["port"] for port in service["spec"]["ports"]]
    command: list[str] = [*pod.main["command"], *pod.main["args"]]
    assert command[0] == "python"
    # -I -S: the standard library is all there is.
    return subprocess.run(
        [sys.executable, "-I", "-S", *command[1:]],
        env={**variables, "RETOUCH_URL": url, "RETOUCH_SECONDS": seconds},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_it_edits_where_nobody_needs_a_key(
    helm: Helm, open_gateway: Gateway, secrets: Secrets
) -> None:
    done = run(helm, {}, open_gateway.url, secrets)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pocket: 64x64, ")


KEYED = {"gateway": {"keys": {"existingSecret": "retouch-keys"}}}


def test_it_edits_with_the_secrets_key(
    helm: Helm, keyed_gateway: Gateway, secrets: Secrets
) -> None:
    done = run(helm, KEYED, keyed_gateway.url, secrets)
    assert (done.returncode, done.stderr) == (0, "")
    assert existing.API_KEY not in done.stdout


def test_it_says_what_is_missing_where_there_is_no_key(
    helm: Helm, keyed_gateway: Gateway, secrets: Secrets
) -> None:
    done = run(helm, {}, keyed_gateway.url, secrets)
    assert done.returncode == 1
    assert "gateway.keys.testKey" in done.stderr


def test_it_fails_with_a_wrong_key(helm: Helm, keyed_gateway: Gateway, secrets: Secrets) -> None:
    wrong = {**secrets, "retouch-keys": {**secrets["retouch-keys"], "test-key": b"another"}}
    done = run(helm, KEYED, keyed_gateway.url, wrong)
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "another" not in done.stderr


def test_it_fails_where_nobody_answers(helm: Helm, secrets: Secrets) -> None:
    with closing(create_server(("127.0.0.1", 0))) as held:
        port = held.getsockname()[1]
    done = run(helm, {}, f"http://127.0.0.1:{port}", secrets, seconds="3")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_pod_may_run_for_as_long_as_an_edit_may_take(helm: Helm) -> None:
    server = {"settings": {"drainTimeout": 900}}
    manifests = helm.render({"gateway": {"settings": {"timeout": 900}}, "server": server})
    (pod,) = [each for each in pods(manifests) if each.owner["kind"] == "Pod"]
    assert pod.spec["activeDeadlineSeconds"] > 900
    assert pod.environment["RETOUCH_SECONDS"] == "900"


def test_no_file_of_the_pod_is_needed(helm: Helm) -> None:
    """Its root is read-only and it mounts nothing."""
    (pod,) = [each for each in pods(helm.render({})) if each.owner["kind"] == "Pod"]
    assert "volumes" not in pod.spec
