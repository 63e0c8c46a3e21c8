"""Runs a tier as it is, and says what it holds to whoever connects: `python inside.py SOCKET retouch_gateway`."""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import socket
import sys
from threading import Thread


def tell_forever(listener: socket.socket) -> None:
    while True:
        with listener.accept()[0] as caller:
            gc.collect()
            alive = gc.get_objects()
            # By type: some objects of torch warn when they are asked for their class.
            tasks = sum(issubclass(type(each), asyncio.Task) and not each.done() for each in alive)
            caller.sendall(json.dumps({"objects": len(alive), "tasks": tasks}).encode())
            del alive


if __name__ == "__main__":
    path, tier, *arguments = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    Thread(target=tell_forever, args=(listener,), name="inside", daemon=True).start()
    sys.argv = [tier, *arguments]
    runpy.run_module(tier, run_name="__main__")
