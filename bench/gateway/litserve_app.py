"""LitServe doing the same job, run by its own Python: JSON in, base64 decoded, encoded again, JSON out."""

import sys
import time
from typing import Any

import litserve  # type: ignore[import-not-found]
import pybase64


class Echo(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any]) -> bytes:
        return pybase64.b64decode(request["images"][0], validate=True)

    def predict(self, picture: bytes) -> bytes:
        return picture

    def encode_response(self, picture: bytes) -> dict[str, Any]:
        item = {"b64_json": pybase64.b64encode_as_string(picture)}
        return {"created": int(time.time()), "data": [item]}


if __name__ == "__main__":
    api = Echo(api_path="/v1/images/edits")
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
