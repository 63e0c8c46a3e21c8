"""The REST tier: OpenAI-compatible image edits over HTTP, translated to gRPC."""

import os

# Read when grpc is imported. What its core has to say comes with the calls that fail, and goes into our own log lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Whom the system trusts, not the list that comes with grpcio. A GRPC_DEFAULT_SSL_ROOTS_FILE_PATH goes before both.
os.environ.setdefault("GRPC_USE_SYSTEM_ROOTS_OVER_LANGUAGE_CALLBACK", "true")
