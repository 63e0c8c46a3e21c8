"""Edits of different callers share forwards, and nobody's picture changes by it."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.conftest import Tiers
from tests.e2e.pictures import b64, difference, photo, png

PROMPTS = [
    "turn it into a black and white photo",
    "make it brighter",
    "invert the colours",
    "add a warm sunset",
]
REQUESTS: list[dict[str, Any]] = [
    {
        "images": [b64(png(photo(128, 128)))],
        "prompt": PROMPTS[index % len(PROMPTS)],
        "num_inference_steps": 4 + index,
        "seed": 100 + index,
        "response_format": "b64_json",
    }
    for index in range(8)
]


def test_concurrent_edits_share_forwards_and_equal_their_lone_runs(tiers: Tiers) -> None:
    def run(body: dict[str, Any]) -> bytes:
        return base64.b64decode(tiers.edit(body)["data"][0]["b64_json"])

    def forwards() -> tuple[float, float, float]:
        """Of all so far: their number, their rows, and how many had one row."""
        return (
            tiers.metric("server", "retouch_server_batch_rows_count"),
            tiers.metric("server", "retouch_server_batch_rows_sum"),
            tiers.metric("server", "retouch_server_batch_rows_bucket", le="1.0"),
        )

    before = forwards()
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        together = list(pool.map(run, REQUESTS))
    count, rows, lone = (now - then for now, then in zip(forwards(), before, strict=True))
    assert rows >= sum(body["num_inference_steps"] for body in REQUESTS)
    assert count - lone > 0
    assert rows / count > 1.5

    alone = [run(body) for body in REQUESTS]
    assert [difference(one, other) <= 1 for one, other in zip(together, alone, strict=True)] == [
        True
    ] * len(REQUESTS)
