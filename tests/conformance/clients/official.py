"""What a user of the official Python SDK sees, 1.x and 3.x alike: official.py CONFIG SCENARIO...

CONFIG is JSON: base_url, key, pictures (a folder), client (a name), model. On stdout, JSON by scenario.
"""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import APIError, AsyncOpenAI, OpenAI
from openai.types import ImagesResponse


class User:
    """One method a scenario; the prompt tells the server behind the gateway which it is."""

    def __init__(self, base_url: str, key: str, pictures: str, client: str, **_: str) -> None:
        self.client = OpenAI(base_url=base_url, api_key=key)
        self.base_url, self.key, self.name = base_url, key, client
        folder = Path(pictures)
        self.photo, self.other = folder / "photo.png", folder / "other.jpg"
        self.hole = folder / "mask.png"

    def edit(self, scenario: str, **fields: Any) -> Any:
        given: dict[str, Any] = {"image": self.photo, "prompt": f"{self.name}: {scenario}"} | fields
        return self.client.images.edit(**given)

    def one(self) -> Any:
        with self.photo.open("rb") as image:
            return self.edit("one", image=image)

    def two(self) -> Any:
        return self.edit("two", image=[self.photo, self.other])

    def mask(self) -> Any:
        return self.edit("mask", mask=self.hole)

    def several(self) -> Any:
        return self.edit("several", n=2)

    def url(self) -> Any:
        return self.edit("url", response_format="url")

    def inline(self) -> Any:
        return self.edit("inline", response_format="b64_json")

    def fields(self) -> Any:
        ours = {"strength": 0.7, "seed": 2**64 - 1, "kontext_max_mode": True}
        return self.edit("fields", quality="high", size="512x512", extra_body=ours)

    def dialect(self) -> Any:
        images = [b64encode(self.photo.read_bytes()).decode()]
        body = {"images": images, "prompt": f"{self.name}: dialect", "seed": 7}
        return self.client.post("/images/edits", cast_to=ImagesResponse, body=body)

    def extra_body(self) -> Any:
        return self.edit(
            "extra_body",
            image=[],
            extra_headers={"Content-Type": "application/json"},
            extra_body={"images": [b64encode(self.photo.read_bytes()).decode()], "seed": 7},
        )

    def stream(self) -> Any:
        return self.edit("stream", stream=True, partial_images=2)

    def broken(self) -> Any:
        return self.edit("broken", stream=True, partial_images=1)

    def hang_up(self) -> Any:
        with self.edit("hang_up", stream=True, partial_images=1) as events:
            return [next(events)]

    async def cancel(self) -> Any:
        async with AsyncOpenAI(base_url=self.base_url, api_key=self.key) as client:
            editing = client.images.edit(image=self.photo, prompt=f"{self.name}: cancel")
            await asyncio.wait_for(editing, 1)

    def refused(self) -> Any:
        return self.edit("refused", size="17x17")

    def unknown(self) -> Any:
        return self.edit("unknown", extra_body={"zoom": 2})

    def busy(self) -> Any:
        return self.edit("busy")

    def unready(self) -> Any:
        return self.edit("unready")

    def lost(self) -> Any:
        return self.edit("lost")

    def key_unknown(self) -> Any:
        stranger = self.client.with_options(api_key="sk-nobody")
        return stranger.images.edit(image=self.photo, prompt=f"{self.name}: key_unknown")

    def models(self) -> Any:
        listed = list(self.client.models.list())
        one = self.client.models.retrieve(listed[0].id)
        shown = [model.to_dict(mode="json")["limits"] for model in (listed[0], one)]
        return {"ids": [model.id for model in listed], "one": one.id, "limits": shown}


def seen(user: User, scenario: str) -> dict[str, Any]:
    """What comes of it, an exception included."""
    events: list[Any] = []
    try:
        result = getattr(user, scenario)()
        if asyncio.iscoroutine(result):
            result = asyncio.run(result)
        if isinstance(result, dict):
            return result
        if isinstance(result, ImagesResponse):
            return result.to_dict(mode="json") | {"request_id": result._request_id}
        for event in result:
            event_class = {"class": type(event).__name__}
            events.append(event.to_dict(mode="json") | event_class)
        return {"events": events}
    except APIError as error:
        named = ("status_code", "param", "code", "type", "message", "request_id")
        told = {name: getattr(error, name, None) for name in named}
        return {"events": events, "error": {"class": type(error).__name__, **told}}
    except TimeoutError:
        return {"cancelled": True}


def main() -> None:
    user = User(**json.loads(sys.argv[1]))
    scenarios = sys.argv[2:]
    with ThreadPoolExecutor(len(scenarios)) as pool:
        found = pool.map(lambda scenario: seen(user, scenario), scenarios)
        print(json.dumps(dict(zip(scenarios, found, strict=True))))


if __name__ == "__main__":
    main()
