"""What batching, compiling and the engine are worth on a GPU: `python -m bench.gpu --help`."""

import time

STARTED = time.monotonic()
"""Before torch is imported, which can take a while on a new machine."""
