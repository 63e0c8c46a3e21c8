"""What nobody's business is gets into no log, metric or trace: both tiers at DEBUG, in both formats, with secrets sent
in every way that callers, operators and models have, and all that is written searched for each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.collector import Collector, run_collector
from tests.e2e.conftest import BIN, environment, free_ports
from tests.e2e.pictures import b64, photo, png
from tests.e2e.secretive import EDITS, Markers, by_grpc, callers, odd_heads, pictures
from tests.object_store import ObjectStore, run_object_store
from tests.run_up import wait_for
from tests.server import tiny
from tests.signing import Studio

# Four processes start together, on a machine that may have two cores.
pytestmark = pytest.mark.timeout(600)
# A server whose pipeline fails with the prompt in its words, as some do, where the prompt says so.
SERVER = """
import sys
from retouch_server import __main__ as tier

def encode_prompt(self, prompt, *arguments, **named):
    if "FAIL" in str(prompt):
        try:
            raise ValueError(f"cannot read {prompt!r}")
        except ValueError as error:
            raise RuntimeError(f"no {prompt}") from error
    return sound(self, prompt, *arguments, **named)

async def serve(settings, serve=tier.serve):
    global sound
    from diffusers import StableDiffusionInstructPix2PixPipeline as Pipeline
    sound, Pipeline._encode_prompt = Pipeline._encode_prompt, encode_prompt
    return await serve(settings)

tier.serve = serve
tier.main(sys.argv[1:])
"""
# A safety check that does the same.
CHECK = """
class Check:
    def before(self, request):
        if "CHECK" in request.prompt:
            raise ValueError(request.prompt)
"""
FORMATS = ("json", "text")


@dataclass
class Run:
    """Two pairs of both tiers, one for each of FORMATS, and all that is to be searched.

    `written`: files of stdout and stderr. `made`: the pictures that callers got, in base64.
    """

    folder: Path
    hidden: Markers
    servers: list[dict[str, str]]
    gateways: list[dict[str, str]]
    collector: Collector
    written: dict[str, Path] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def start(self, name: str, command: list[str | Path], variables: dict[str, str]) -> None:
        self.written[name] = self.folder / f"{name}.log"
        with self.written[name].open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(**variables)
            )
        self.processes.append(process)

    def keep(self, answer: httpx.Response) -> None:
        """Remember the pictures of an answer, which its caller will read as well."""
        content = answer.read()
        if answer.headers.get("content-type", "").startswith("image/") and len(content) > 1000:
            self.made.append(b64(content))
        self.made += re.findall(r'"b64_json": ?"([^"]+)"', content.decode("latin-1"))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def end(self) -> None:
        """In order, with what is said on the way out."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            assert process.wait(60) == 0

    @property
    def searched(self) -> dict[str, str]:
        """All that was written, by where."""
        logs = {name: path.read_text() for name, path in self.written.items()}
        return {**logs, **self.pages, "traces": str(self.collector.sent)}


def url(ports: dict[str, str], name: str = "GATEWAY_PORT") -> str:
    return f"http://127.0.0.1:{ports[f'RETOUCH_{name}']}"


def keys_file(path: Path, hidden: Markers) -> Path:
    lines = []
    for name, more in (("good key", ""), ("other key", ""), ("old key", "expires = 2020-01-01")):
        digest = hashlib.sha256(hidden[name].encode()).hexdigest()
        lines.append(f'[[keys]]\nid = "{name.split()[0]}"\nhash = "sha256:{digest}"\n{more}\n')
    path.write_text("\n".join(lines))
    return path


def start(run: Run, store: ObjectStore) -> None:
    """A server that signs and a gateway with a bucket, which write JSON; a server and a gateway with a folder, text."""
    hidden, folder = run.hidden, run.folder
    catalog = folder / "models.yaml"
    source = json.dumps(str(tiny.save("instruct", folder)))
    catalog.write_text(
        f"models:\n  - {{id: tiny, source: {source}}}\n"
        "  - {id: pocket, source: pocket, safety: ['words_of_prompts:Check']}\n"
    )
    (folder / "words_of_prompts.py").write_text(CHECK)
    pair = Studio(folder).issue()
    signed = {
        "RETOUCH_SERVER_C2PA_CERT": str(pair.cert),
        "RETOUCH_SERVER_C2PA_KEY": str(pair.key),
    }
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": run.collector.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{hidden['collector token']}",
    }
    server = {
        "RETOUCH_SERVER_MODELS": str(catalog),
        "RETOUCH_SERVER_LOG_LEVEL": "DEBUG",
        "PYTHONPATH": str(folder),
        # What an operator may have set: it must not matter.
        "DIFFUSERS_VERBOSITY": "debug",
        "TRANSFORMERS_VERBOSITY": "debug",
    }
    for style, ports, own in zip(FORMATS, run.servers, (signed, {}), strict=True):
        styled = {"RETOUCH_SERVER_LOG_FORMAT": style}
        command: list[str | Path] = [sys.executable, "-c", SERVER]
        run.start(f"server {style}", command, ports | traced | server | styled | own)
    common = {
        "RETOUCH_GATEWAY_KEYS": str(keys_file(folder / "keys.toml", hidden)),
        "RETOUCH_GATEWAY_LOG_LEVEL": "DEBUG",
        "RETOUCH_GATEWAY_RATE_LIMIT": "9999/minute",
        "RETOUCH_GATEWAY_LIMITS_STORE": f"redis://user:{hidden['redis password']}@127.0.0.1:1",
        "RETOUCH_GATEWAY_FETCH_IMAGES": "true",
    }
    (folder / "signing-key").write_text(hidden["signing key"])
    bucket = store.variables | {
        "RETOUCH_GATEWAY_STORE": f"s3://{store.bucket}/prefix",
        "RETOUCH_GATEWAY_SIGNING_KEY_FILE": str(folder / "signing-key"),
        "AWS_ACCESS_KEY_ID": hidden["store id"],
        "AWS_SECRET_ACCESS_KEY": hidden["store secret"],
    }
    plain = {
        "RETOUCH_GATEWAY_STORE": str(folder / "store"),
        "RETOUCH_GATEWAY_SIGNING_KEY": f"{hidden['first signing key']},{hidden['second signing key']}",
    }
    pairs = zip(FORMATS, (bucket, plain), run.servers, run.gateways, strict=True)
    for style, own, server_ports, ports in pairs:
        upstream = f"127.0.0.1:{server_ports['RETOUCH_SERVER_PORT']}"
        own |= {"RETOUCH_GATEWAY_UPSTREAM": upstream, "RETOUCH_GATEWAY_LOG_FORMAT": style}
        run.start(style, [BIN / "retouch-gateway"], ports | traced | common | own)
    for ports in run.gateways:
        wait_for(lambda ports=ports: _ready(ports), 240, "ready")  # type: ignore[misc]


def _ready(ports: dict[str, str]) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url(ports) + "/readyz", trust_env=False).status_code == 200
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """All that happens has happened, and both tiers have ended."""
    folder = tmp_path_factory.mktemp("logs")
    with run_collector() as collector, contextlib.ExitStack() as stack:
        stored = stack.enter_context(contextlib.ExitStack())
        store = stored.enter_context(run_object_store())
        free = [free_ports() for _ in range(4)]
        run = Run(folder, Markers(), free[:2], free[2:], collector)
        stack.callback(run.kill)
        start(run, store)
        for ports in run.gateways:
            with httpx.Client(base_url=url(ports), timeout=60, trust_env=False) as client:
                client.headers["x-api-key"] = run.hidden["good key"]
                client.event_hooks["response"].append(run.keep)
                callers(client, run.hidden)
                odd_heads(int(ports["RETOUCH_GATEWAY_PORT"]), run.hidden)
        for ports in run.servers:
            by_grpc(f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}", run.hidden)
        files_with_mistakes(run)
        stored.close()
        without_a_store(run)
        pages(run)
        run.end()
        yield run


def pages(run: Run) -> None:
    for i, ports in enumerate(run.gateways):
        run.pages[f"gateway {i} metrics"] = httpx.get(
            url(ports, "GATEWAY_METRICS_PORT") + "/metrics", trust_env=False
        ).text
    for i, ports in enumerate(run.servers):
        where = url(ports, "SERVER_METRICS_PORT")
        httpx.get(f"{where}/{quote(run.hidden['metrics path'])}", trust_env=False)
        run.pages[f"server {i} metrics"] = httpx.get(where + "/metrics", trust_env=False).text


def files_with_mistakes(run: Run) -> None:
    """Operators' own, under a gateway that runs."""
    (run.folder / "keys.toml").write_text(
        f'[[keys]]\nid = "x"\nhash = "{run.hidden["plain key"]}"\n'
    )
    (run.folder / "signing-key").write_text(
        f"{run.hidden['new signing key']}\n{'zqshort' + '1' * 4}"
    )
    run.hidden["short key"] = "zqshort1111"
    log = run.written["json"]
    for file in ("keys", "signing_key"):
        wait_for(lambda f=file: f"{f}: the file is not taken up" in log.read_text(), 20, "seen")  # type: ignore[misc]


def without_a_store(run: Run) -> None:
    """The bucket is gone, and where the folder was there is a file."""
    (run.folder / "store").rename(run.folder / "gone")
    (run.folder / "store").write_text("")
    for ports in run.gateways:
        body = {
            "images": [b64(png(photo(64, 64)))],
            "prompt": run.hidden["last prompt"],
            "num_inference_steps": 1,
        }
        given = {"x-api-key": run.hidden["good key"], "idempotency-key": run.hidden["last key"]}
        answer = httpx.post(
            url(ports) + EDITS, json=body, headers=given, timeout=60, trust_env=False
        )
        assert "b64_json" in answer.json()["data"][0], answer.text


def test_none_is_written(run: Run) -> None:
    for style in FORMATS:  # with the rest of the prompt, in pieces
        assert "input was truncated" not in run.searched[f"server {style}"]
    for where, text in run.searched.items():
        found = [what for what, marker in run.hidden.items() if marker.lower() in text.lower()]
        assert found == [], f"in {where}"


def test_no_picture_is_written(run: Run) -> None:
    sent = [b64(data) for data in pictures(run.hidden)]
    assert len(run.made) >= 6
    pieces = {data[at : at + 40] for data in (*sent, *run.made) for at in (0, 400)}
    for where, text in run.searched.items():
        assert not any(piece in text for piece in pieces), where


def test_what_happened_is(run: Run) -> None:
    """That nothing is found must not be since nothing is there."""
    text = run.searched
    lines = [json.loads(line) for line in text["json"].splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    for status in (200, 204, 206, 400, 401, 403, 404, 405, 415, 422, 500):
        assert [line for line in requests if line["status"] == status], status
        assert " request method=" in text["text"]
    assert {line.get("key") for line in requests} == {None, "good", "old", "other"}
    for kind in ("Unauthorized", "KeyExpired", "Forbidden", "BadRequest", "KeyReused"):
        assert [line for line in requests if line.get("error") == kind], kind
    assert "store: " in text["text"]
    assert [line for line in lines if line["message"].startswith("store: ")]
    for style in FORMATS:
        server = text[f"server {style}"]
        assert server.count("an edit failed") == 3
        assert server.count("in encode_prompt") == 6, "each with both its causes"
        assert server.count("the safety check words_of_prompts:Check failed before an edit") == 1
    assert text["server text"].count(" retouch_server.access: call ") > 10
    of_server = [json.loads(line) for line in text["server json"].splitlines()]
    assert len([line for line in of_server if line["message"] == "call"]) > 10
    assert "results are signed by" in text["server json"]
    assert len(run.collector.spans) > 50
    assert "retouch_gateway_requests_total" in text["gateway 0 metrics"]


def test_nobody_forges_a_line(run: Run) -> None:
    stamped = ("INFO ", "DEBUG ", "WARNING ", "ERROR ")
    for line in run.searched["text"].splitlines():
        assert line.split(" ", 2)[2].startswith(stamped), line
        assert "forged" not in line
