"""The init container's own script, before a hub of this machine; then the server, which never asks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from tests.browser import stack
from tests.e2e.conftest import free_ports
from tests.helm import container
from tests.helm.chart import Helm, Manifest
from tests.helm.hub import Hub, serve
from tests.helm.objects import Pod, tier
from tests.run_up import wait_for
from tests.server import tiny
from tests.server.test_tuning import adapter

MODEL, LORA = "1" * 40, "2" * 40
ROOM = {"requests": {"cpu": 1, "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
VALUES = {
    "models": [
        {
            "name": "kontext",
            "resources": ROOM,
            "cache": {"size": "10Gi"},
            "download": {"tokenSecret": "hub"},
            "catalog": [
                {
                    "id": "kontext",
                    "source": "acme/kontext",
                    "revision": MODEL,
                    "defaults": {"num_inference_steps": 1},
                    "max_tokens": 4096,  # nothing to measure
                    "warm_up": [[64, 64]],
                    "loras": [
                        {
                            "source": "acme/ink",
                            "revision": LORA,
                            "weight_name": "ink.safetensors",
                        }
                    ],
                },
            ],
        }
    ]
}
Secrets = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """A tiny FLUX.1 Kontext with a card and weights in a format that is not read, and a LoRA for it."""
    folder = tmp_path_factory.mktemp("hub")
    model = tiny.save("kontext", folder)
    (model / "README.md").write_text("---\nwidget:\n  - text: make it snow\n---\n")
    (model / "flux1-kontext-dev.safetensors").write_bytes(b"\0" * 1000)
    (model / "transformer/diffusion_pytorch_model.bin").write_bytes(b"\0" * 1000)
    (folder / "ink").mkdir()
    transformer = FluxTransformer2DModel.from_pretrained(model / "transformer")
    save_file(adapter(transformer, "transformer", "to_q"), folder / "ink/ink.safetensors")
    (folder / "ink/other.safetensors").write_bytes(b"\0" * 1000)
    return {"acme/kontext": (model, MODEL), "acme/ink": (folder / "ink", LORA)}


def run(manifests: list[Manifest], pod: Pod, secrets: Secrets, root: Path, hub: Hub) -> str:
    """Runs the init container with its files below `root`. Returns what it said; AssertionError if it failed."""
    (download,) = pod.spec["initContainers"]
    places = container.place(manifests, pod, download, secrets, root)
    found = container.environment(manifests, download, secrets)
    variables = {name: container.moved(value, places) for name, value in found.items()}
    command = download["command"] + download["args"]
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(root / "tmp"),
            **variables,
            "HF_ENDPOINT": hub.url,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_what_is_downloaded_is_what_the_server_loads(
    helm: Helm, repositories: dict[str, tuple[Path, str]], secrets: Secrets, tmp_path: Path
) -> None:
    manifests = helm.render(VALUES)
    (pod,) = tier(manifests, "server")
    with serve(repositories) as hub:
        run(manifests, pod, secrets, tmp_path, hub)
        assert hub.revisions == {MODEL, LORA}, "commits alone: a branch moves"
        assert hub.tokens == {"Bearer hf_token"}, "gated models want it for each file"
        assert "ink.safetensors" in hub.sent
        assert {"other.safetensors", "flux1-kontext-dev.safetensors"} & set(hub.sent) == set()
        assert not [name for name in hub.sent if name.endswith(".bin")]
    gone = Hub(hub.url, {})
    run(
        manifests, pod, secrets, tmp_path, gone
    )  # a pod that restarts while the hub is out of reach
    starts(manifests, pod, secrets, tmp_path, gone)


def starts(manifests: list[Manifest], pod: Pod, secrets: Secrets, root: Path, gone: Hub) -> None:
    """The server's container becomes ready from what lies in the cache."""
    places = container.place(manifests, pod, pod.main, secrets, root)
    variables = {
        name: container.moved(value, places)
        for name, value in container.environment(manifests, pod.main, secrets).items()
        if name != "RETOUCH_SERVER_HOST"
    }
    ports = {name: port for name, port in free_ports().items() if "SERVER" in name}
    page = f"http://127.0.0.1:{ports['RETOUCH_SERVER_METRICS_PORT']}/readyz"

    def ready() -> bool:
        assert process.poll() is None, f"it has ended; see {stack.LOGS}/helm-download.log"
        try:
            return httpx.get(page, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    with stack.process(
        "retouch-server", "helm-download", **variables, **ports, HF_ENDPOINT=gone.url
    ) as process:
        wait_for(ready, 240, f"ready; see {stack.LOGS}/helm-download.log")
