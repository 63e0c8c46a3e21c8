"""The curl command that is printed, in a real shell."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from retouch_cli.curl import as_curl


@pytest.mark.parametrize("prompt", ["add a warm sunset", 'it\'s 50% "warmer" \\ über 红'])
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_printed_curl_sends_the_photo(tmp_path: Path, shell: str, prompt: str) -> None:
    photo = tmp_path / "a photo's.jpg"
    photo.write_bytes(bytes(range(256)) * 4000)
    command = as_curl("http://127.0.0.1:8000/v1/images/edits", photo, prompt)
    # A curl that prints its body as `-d @-` reads it: without line breaks.
    script = f'curl() {{ echo "$@" >&2; tr -d "\\r\\n"; }}\n{command}'
    done = subprocess.run([shell, "-c", script], capture_output=True, check=True, text=True)
    body = json.loads(done.stdout)
    assert body["prompt"] == prompt
    assert base64.b64decode(body["images"][0], validate=True) == photo.read_bytes()
    assert "http://127.0.0.1:8000/v1/images/edits" in done.stderr
