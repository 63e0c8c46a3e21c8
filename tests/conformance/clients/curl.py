"""What a user of curl sees: curl.py CONFIG SCENARIO... (see official.py)"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TIMED_OUT = 28


class User:
    def __init__(self, base_url: str, key: str, pictures: str, client: str, **_: str) -> None:
        self.base_url, self.key, self.name = base_url, key, client
        self.photo, self.other, self.hole = (
            f"{pictures}/{file}" for file in ("photo.png", "other.jpg", "mask.png")
        )

    def arguments(self, path: str, *arguments: str, key: str | None = None) -> list[str]:
        authorization = f"Authorization: Bearer {key or self.key}"
        told = ["-sS", "-w", "%{http_code} %header{x-request-id}", "-H", authorization]
        return ["curl", *told, *arguments, self.base_url + path]

    def edit(self, scenario: str, *fields: str, image: bool = True, **options: Any) -> list[str]:
        form = [f"prompt={self.name}: {scenario}", *fields]
        form += [f"image=@{self.photo}"] if image else []
        flags = [part for field in form for part in ("-F", field)]
        return self.arguments("/images/edits", *flags, *options.pop("flags", ()), **options)

    def one(self) -> list[str]:
        return self.edit("one")

    def two(self) -> list[str]:
        images = [f"image[]=@{self.photo}", f"image[]=@{self.other}"]
        return self.edit("two", *images, image=False)

    def mask(self) -> list[str]:
        return self.edit("mask", f"mask=@{self.hole}")

    def several(self) -> list[str]:
        return self.edit("several", "n=2")

    def url(self) -> list[str]:
        return self.edit("url", "response_format=url")

    def inline(self) -> list[str]:
        return self.edit("inline", "response_format=b64_json")

    def fields(self) -> list[str]:
        ours = ["strength=0.7", "seed=18446744073709551615", "kontext_max_mode=ON"]
        return self.edit("fields", "quality=high", "size=512x512", *ours)

    def dialect(self) -> list[str]:
        images = [b64encode(Path(self.photo).read_bytes()).decode()]
        body = {"images": images, "prompt": f"{self.name}: dialect", "seed": 7}
        return self.arguments("/images/edits", "--json", json.dumps(body))

    def stream(self) -> list[str]:
        return self.edit("stream", "stream=true", "partial_images=2", flags=["-N"])

    def broken(self) -> list[str]:
        return self.edit("broken", "stream=true", "partial_images=1", flags=["-N"])

    def hang_up(self) -> list[str]:
        return self.edit("hang_up", "stream=true", "partial_images=1", flags=["-N", "-m", "1"])

    def cancel(self) -> list[str]:
        return self.edit("cancel", flags=["--max-time", "1"])

    def refused(self) -> list[str]:
        return self.edit("refused", "size=17x17")

    def unknown(self) -> list[str]:
        return self.edit("unknown", "zoom=2")

    def busy(self) -> list[str]:
        return self.edit("busy", flags=["--retry", "2"])

    def unready(self) -> list[str]:
        return self.edit("unready", flags=["--retry", "2"])

    def key_unknown(self) -> list[str]:
        return self.edit("key_unknown", key="sk-nobody")

    def models(self) -> list[str]:
        return self.arguments("/models")


def seen(user: User, scenario: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as body:
        command = [*getattr(user, scenario)(), "-o", body.name]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        told = Path(body.name).read_text()
    status, _, request_id = ran.stdout.partition(" ")
    if "\n\n" in told:
        return _streamed(told)
    if ran.returncode == TIMED_OUT:
        return {"cancelled": True}
    answer: dict[str, Any] = json.loads(told)
    if "error" in answer:
        error = {"status_code": int(status), "request_id": request_id}
        return {"events": [], "error": answer["error"] | error}
    if scenario == "models":
        listed = answer["data"]
        return {"ids": [model["id"] for model in listed], "limits": [listed[0]["limits"]]}
    return answer | {"request_id": request_id}


def _streamed(told: str) -> dict[str, Any]:
    lines = [line.removeprefix("data: ") for line in told.splitlines() if line.startswith("data: ")]
    said = [json.loads(line) for line in lines]
    seen = {"events": [event for event in said if "error" not in event]}
    return seen | (said[-1] if "error" in said[-1] else {})


def main() -> None:
    user = User(**json.loads(sys.argv[1]))
    scenarios = sys.argv[2:]
    with ThreadPoolExecutor(len(scenarios)) as pool:
        found = pool.map(lambda scenario: seen(user, scenario), scenarios)
        print(json.dumps(dict(zip(scenarios, found, strict=True))))


if __name__ == "__main__":
    main()
