"""The REST tier: OpenAI-compatible image edits over HTTP, translated to gRPC."""

import os

# Read when grpc is imported. What its core has to say comes with the calls that fail, and goes into our own log lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
