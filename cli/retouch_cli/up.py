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

from retouch_cli.addresses import Address, Addresses
from retouch_cli.client import EDITS, Edited, as_curl, edit, message
from retouch_cli.errors import Failure
from retouch_cli.gateway import KEY, Gateway, usable_key
from retouch_cli.processes import Child, first_of

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
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long a model may take to load, download included (%(default)g)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return asyncio.run(up(arguments))


async def up(arguments: argparse.Namespace) -> int:
    photo = b"" if arguments.no_edit else read(arguments.photo)
    environment = dict(os.environ)
    if arguments.models is not None:
        environment["RETOUCH_SERVER_MODELS"] = arguments.models
    addresses = Addresses.of(environment)
    addresses.check_free()
    environment.setdefault("RETOUCH_GATEWAY_UPSTREAM", addresses.grpc.authority)
    for tier in ("SERVER", "GATEWAY"):  # whose logs are read by whoever is here
        environment.setdefault(f"RETOUCH_{tier}_LOG_FORMAT", "text")

    key = usable_key(environment.get(KEY, ""), KEY)
    rest = Gateway(addresses.rest.url, key, EDIT_SECONDS)
    folder = writable_folder()
    server = Child("retouch-server", folder / "server.log")
    gateway = Child("retouch-gateway", folder / "gateway.log")
    asked = stop_on_signals(server, gateway)

    async def serve() -> None:
        async with httpx.AsyncClient(
            base_url=rest.url, headers=rest.headers, trust_env=False
        ) as client:
            await ready(client, arguments.wait)
            if not arguments.no_edit:
                await first_edit(client, arguments, photo, folder)
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


async def first_edit(
    client: httpx.AsyncClient, arguments: argparse.Namespace, photo: bytes, folder: Path
) -> None:
    client.timeout = httpx.Timeout(EDIT_SECONDS)
    try:
        edited: Edited = await edit(client, photo, arguments.prompt)
    except httpx.HTTPError as error:
        raise Failure(f"the first edit failed: {type(error).__name__} {error}") from error
    copy = folder / "edited.png"
    try:
        copy.write_bytes(edited.data)
    except OSError as error:
        raise Failure(f"cannot write {copy}: {error.strerror}") from error
    say(
        f'Edited {arguments.photo.name}, "{arguments.prompt}", in {edited.seconds:.1f} s:\n'
        f"  URL    {edited.url}\n"
        f"  saved  {copy}"
    )


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

{as_curl(url, photo, NEXT_PROMPT)}

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


def read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise Failure(f"cannot read {photo}: {error.strerror}") from error


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
