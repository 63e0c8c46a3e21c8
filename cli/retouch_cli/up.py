"""`retouch up`: both tiers on this machine, one photo edited, ready for the next."""

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx

from retouch_cli import photos
from retouch_cli.addresses import Address, Addresses
from retouch_cli.curl import as_curl
from retouch_cli.errors import Failure
from retouch_cli.gateway import KEY, Gateway, duration, usable_key
from retouch_cli.processes import Child, first_of
from retouch_cli.progress import Watcher
from retouch_cli.request import EDITS, Edit, send
from retouch_cli.session import NONSENSE, http_client
from retouch_cli.stream import Picture

SAMPLE = Path(__file__).with_name("sample.jpg")
PROMPT = "add a warm sunset"
NEXT_PROMPT = "make it look like night"
POLL_SECONDS = 0.1
EDIT_SECONDS = 300.0
STOP_SECONDS = 30.0

DESCRIPTION = """\
Starts retouch-server (gRPC, runs the models) and retouch-gateway (REST) on this machine, waits
until they are ready, edits a photo over REST, prints where the result is, the address of the page to
try it on, and how to send the next edit, and stays until Ctrl-C, which stops both. A second Ctrl-C
kills them at once.
"""

EPILOG = """\
settings:
  The two tiers' variables apply, RETOUCH_SERVER_* and RETOUCH_GATEWAY_*. Those that matter here:
    RETOUCH_GATEWAY_PORT          REST                     (8000)
    RETOUCH_GATEWAY_METRICS_PORT  the gateway's metrics    (9091)
    RETOUCH_SERVER_PORT           gRPC                     (50051)
    RETOUCH_SERVER_METRICS_PORT   the server's metrics     (9090)
    RETOUCH_SERVER_MODELS         as --models              (pocket)
  RETOUCH_API_KEY is sent with the first edit, for a gateway with RETOUCH_GATEWAY_KEYS.

files, in .retouch/ under the current folder, or in a temporary folder where that cannot be written:
  server.log, gateway.log   what the tiers say, since the last start
  edited.png                the first edit's result

exit status:
  0  stopped by Ctrl-C or SIGTERM
  1  something failed; one line on stderr says what
  2  the command line was wrong
  3  the first edit was refused: its photo, its prompt
  4  the gateway wants an API key, or another one
  5  the gateway stayed too busy for the first edit

examples:
  retouch up
  retouch up --photo cat.jpg --prompt "make it night"
  RETOUCH_GATEWAY_PORT=8080 retouch up --no-edit
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "up",
        help="start both tiers here and edit a first photo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        metavar="LIST",
        help="what to serve: id=source,... (a folder, a hub id, or just pocket), or a YAML file",
    )
    parser.add_argument("--no-edit", action="store_true", help="start only, edit nothing")
    parser.add_argument(
        "--photo", type=Path, default=SAMPLE, help="what to edit first (the sample that ships)"
    )
    parser.add_argument("--prompt", default=PROMPT, help="how to edit it (%(default)s)")
    parser.add_argument(
        "--wait",
        type=duration,
        default=600.0,
        metavar="SECONDS",
        help="how long a model may take to load, download included (%(default)g)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.no_edit:
        return asyncio.run(up(arguments, None))
    with photos.opened(str(arguments.photo)) as photo:
        fields = {"prompt": arguments.prompt, "response_format": "url"}
        return asyncio.run(up(arguments, Edit([photo], None, fields, 1)))


async def up(arguments: argparse.Namespace, edit: Edit | None) -> int:
    environment = dict(os.environ)
    if arguments.models is not None:
        environment["RETOUCH_SERVER_MODELS"] = arguments.models
    addresses = Addresses.of(environment)
    addresses.check_free()
    environment.setdefault("RETOUCH_GATEWAY_UPSTREAM", addresses.grpc.authority)
    for tier in ("SERVER", "GATEWAY"):  # whose logs are read by whoever is here
        environment.setdefault(f"RETOUCH_{tier}_LOG_FORMAT", "text")

    key = usable_key(environment.get(KEY, ""), KEY)
    rest = Gateway(addresses.rest.url, key, EDIT_SECONDS, here=True)
    folder = writable_folder()
    server = Child("retouch-server", folder / "server.log")
    gateway = Child("retouch-gateway", folder / "gateway.log")
    asked = stop_on_signals(server, gateway)

    async def serve() -> None:
        async with http_client(rest) as client:
            await ready(client, arguments.wait)
            if edit:
                await first_edit(edit, rest, folder)
            playground = await has_page(client)
        tell(addresses, folder, arguments.photo, playground)
        await asyncio.Event().wait()

    say("Starting retouch-server and retouch-gateway ...")
    try:
        await server.start(environment)
        await gateway.start(environment)
        await first_of(asked.wait(), server.died(), gateway.died(), serve())
        say("\nStopping ... (Ctrl-C again kills)")
    finally:
        # The gateway first, so that no request meets a server that is gone.
        stopped = [await gateway.stop(STOP_SECONDS), await server.stop(STOP_SECONDS)]
    if not all(stopped):
        raise Failure("killed before both had stopped by themselves")
    return 0


def stop_on_signals(*children: Child) -> asyncio.Event:
    """An event that the first signal sets; the second one kills the children."""
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            for child in children:
                child.kill()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return asked


async def ready(client: httpx.AsyncClient, seconds: float) -> None:
    started = time.monotonic()
    why = "the gateway does not answer"
    while time.monotonic() - started < seconds:
        try:
            reply = await client.get("/readyz")
        except httpx.TransportError:
            pass  # not listening yet
        else:
            if reply.is_success:
                say(f"Ready in {time.monotonic() - started:.1f} s.")
                return
            why = message(reply)
        await asyncio.sleep(POLL_SECONDS)
    raise Failure(f"not ready after {seconds:g} s: {why}")


def message(reply: httpx.Response) -> str:
    """Why the gateway is not ready, as it says itself."""
    try:
        return str(reply.json()["error"]["message"])
    except NONSENSE:
        return f"it answered {reply.status_code}"


async def first_edit(edit: Edit, gateway: Gateway, folder: Path) -> None:
    photo, prompt = edit.photos[0].name, edit.fields["prompt"]
    names = {"images[0]": photo, "images": "--photo", "prompt": "--prompt"}
    made: list[Picture] = []
    started = time.monotonic()
    await send(edit, gateway, names, Watcher(), made)
    seconds = time.monotonic() - started
    copy = folder / "edited.png"
    try:
        copy.write_bytes(made[0].data)
    except OSError as error:
        raise Failure(f"cannot write {copy}: {error.strerror}") from error
    say(f'Edited {Path(photo).name}, "{prompt}", in {seconds:.1f} s:')
    if made[0].url:
        say(f"  URL    {made[0].url}")
    say(f"  saved  {copy}")


async def has_page(client: httpx.AsyncClient) -> bool:
    """Whether the gateway has its playground, which a setting turns off."""
    try:
        reply = await client.get("/")
    except httpx.HTTPError:
        return False
    return reply.is_success and "html" in reply.headers.get("content-type", "")


def tell(addresses: Addresses, folder: Path, photo: Path, playground: bool) -> None:
    url = addresses.rest.url
    if playground:
        say(f"\nOpen {url}/ to try it.")
    where = "" if url == "http://127.0.0.1:8000" else f" --url {url}"
    say(
        f"""
REST  {url}{EDITS}
      metrics {page(addresses.gateway_metrics)}, log {folder / "gateway.log"}
gRPC  {addresses.grpc.authority}
      metrics {page(addresses.server_metrics)}, log {folder / "server.log"}

The next edit, in another terminal, or with curl:

  {this_command()} edit{where} {shlex.quote(str(photo))} "{NEXT_PROMPT}"

{as_curl(url + EDITS, photo, NEXT_PROMPT)}

Ctrl-C stops both.""",
    )


def this_command() -> str:
    """`retouch` as whoever runs it can run it again."""
    command = sys.argv[0]
    if Path(command).name != "retouch" or shutil.which("retouch") == command:
        return "retouch"
    return shlex.quote(command)


def page(metrics: Address | None) -> str:
    return f"{metrics.url}/metrics" if metrics else "off"


def writable_folder() -> Path:
    folder = Path(".retouch")
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    return (
        folder
        if folder.is_dir() and os.access(folder, os.W_OK)
        else Path(tempfile.mkdtemp(prefix="retouch-"))
    )


def say(text: str) -> None:
    print(text, flush=True)
