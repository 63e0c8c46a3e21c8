"""`retouch-server`: settings, then models, then serving until a signal; then a stop that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from . import logs, otlp
from .settings import Settings, SettingsError, read, unknown_variables

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("retouch_server")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0 stopped by a signal, 1 could not serve, 2 mistakes in the settings.

    A second signal exits at once, with 1.
    """
    # Until there is a loop: of process 1, as in a container, the kernel drops a signal that nobody handles.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _exit_now(0))
    try:
        settings = read(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        log.warning("%s is not a setting", name)
    # Before torch is imported. Its threads wait for each other by spinning: beside one busy program on two
    # cores, a forward took six times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Before they are imported, and whatever was asked for: their warnings cite prompts.
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # What gRPC's core would write beside the log; a port that is taken, it also raises.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # All is stopped: to take apart what torch has loaded would be 1.4 s of CPU for nothing.
    _exit_now(asyncio.run(serve(settings)))


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, or until an engine dies. Returns the exit code."""
    # Here and not above: torch takes seconds to import, and mistakes in the settings should not wait for it.
    from .loading import LoadError
    from .server import BindError, Server
    from .tracing import Tracing

    logs.adopt()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.on_loop_error)

    def on_signal() -> None:
        if stopping.is_set():
            _exit_now(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    tracing = Tracing(otlp.connect("retouch-server"))
    server = Server(settings, lambda: loop.call_soon_threadsafe(stopping.set), tracing)
    code = 0
    try:
        await _serve_until(stopping, server)
    except (BindError, LoadError) as error:
        print(error, file=sys.stderr)
        code = 1
    else:
        log.info("stopping: %s", "an engine died" if server.dead else "finishing what was accepted")
    clean = await server.stop()
    await asyncio.to_thread(tracing.close)
    code = 1 if server.dead else code
    if not clean:
        _exit_now(code)
    return code


async def _serve_until(stopping: asyncio.Event, server: Server) -> None:
    """Bind, load and serve, until told to stop, be it while loading. Raises BindError or LoadError."""
    await server.start()
    loading = asyncio.create_task(server.load())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        await loading
    await waiting


def _exit_now(code: int) -> NoReturn:
    """Exit without waiting for threads: one that is in torch would be waited for, or abort the process."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
