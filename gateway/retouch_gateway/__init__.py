"""The REST tier: OpenAI-compatible image edits over HTTP, translated to gRPC."""
