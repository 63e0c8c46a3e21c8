"""The contract's JSON request through both tiers, and what comes of it."""

import base64
import io
import subprocess
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image

from tests.e2e.conftest import TTL_SECONDS, Tiers, tool
from tests.e2e.pictures import b64, chroma, difference, left_half, photo, pixels, png
from tests.run_up import wait_for

PROMPT = "turn it into a black and white photo"


def request(**fields: Any) -> dict[str, Any]:
    return {"images": [b64(png(photo()))], "prompt": PROMPT, "seed": 7, **fields}


def is_black_and_white(data: bytes, size: tuple[int, int] = (256, 256)) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", size)
    colour, was = chroma(pixels(data)), chroma(pixels(photo()))
    assert colour < 0.3 * was
    assert difference(data, photo(*size)) > 20


def test_an_edit_by_url(tiers: Tiers) -> None:
    before = int(time.time())
    reply = tiers.rest.post("/v1/images/edits", json=request())
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-request-id"]
    assert int(reply.headers["openai-processing-ms"]) > 0
    answer = reply.json()
    assert before <= answer["created"] <= time.time()
    (item,) = answer["data"]
    assert item["revised_prompt"] == PROMPT
    assert "b64_json" not in item
    opened = httpx.get(item["url"])
    assert opened.headers["content-type"] == "image/png"
    is_black_and_white(opened.content)


def test_all_twelve_fields(tiers: Tiers) -> None:
    body = request(
        mask=b64(png(left_half())),
        model="pocket",
        n=1,
        size="512x512",
        response_format="b64_json",
        strength=0.9,
        guidance_scale=1.0,
        num_inference_steps=4,
        kontext_max_mode="true",
    )
    assert len(body) == 12
    (item,) = tiers.edit(body)["data"]
    result = pixels(base64.b64decode(item["b64_json"]))
    assert result.shape == (512, 512, 3)
    given = pixels(photo().resize((512, 512), Image.Resampling.LANCZOS))
    colour, was = chroma(result[:, :250]), chroma(given[:, :250])
    assert colour < 0.5 * was
    moved = abs(result[:, 262:] - given[:, 262:]).max()  # the mask keeps the right half
    assert moved <= 1


def test_the_size_of_the_photo_is_kept(tiers: Tiers) -> None:
    body = request(images=[b64(png(photo(320, 192)))], response_format="b64_json")
    (item,) = tiers.edit(body)["data"]
    is_black_and_white(base64.b64decode(item["b64_json"]), (320, 192))


def test_several_images_and_seeds(tiers: Tiers) -> None:
    def run(**fields: Any) -> list[bytes]:
        answer = tiers.edit(request(response_format="b64_json", **fields))
        return [base64.b64decode(item["b64_json"]) for item in answer["data"]]

    both = run(n=2)
    assert len(both) == 2
    assert difference(*both) > 0
    # Image i is made with seed + i, and can be had again alone.
    assert difference(run(seed=8)[0], both[1]) <= 1
    assert run(seed=7) == run(seed=7)


def as_raw_post(client: openai.OpenAI) -> ImagesResponse:
    return client.post("/images/edits", cast_to=ImagesResponse, body=request())


def as_edit_with_a_json_body(client: openai.OpenAI) -> ImagesResponse:
    body = request()
    return client.images.edit(
        image=[],
        prompt=PROMPT,
        extra_headers={"Content-Type": "application/json"},
        extra_body={"images": body["images"], "seed": 7},
    )


@pytest.mark.parametrize("form", [as_raw_post, as_edit_with_a_json_body])
def test_the_official_sdk(tiers: Tiers, form: Any) -> None:
    with openai.OpenAI(base_url=f"{tiers.url}/v1", api_key="none", max_retries=0) as client:
        answer: ImagesResponse = form(client)
        assert answer.data
        assert answer.data[0].url
        is_black_and_white(httpx.get(answer.data[0].url).content)
        assert [model.id for model in client.models.list()] == ["pocket"]


def test_the_official_sdk_reads_our_errors(tiers: Tiers) -> None:
    with (
        openai.OpenAI(base_url=f"{tiers.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="n") as raised,
    ):
        client.post("/images/edits", cast_to=ImagesResponse, body=request(n=11))
    assert raised.value.param == "n"
    assert raised.value.type == "invalid_request_error"


def test_a_url_ends_with_its_time_to_live(tiers: Tiers) -> None:
    url = tiers.edit(request())["data"][0]["url"]
    assert httpx.get(url).status_code == 200
    wait_for(lambda: httpx.get(url).status_code in (404, 410), TTL_SECONDS + 3, "the URL gone")


@pytest.mark.parametrize("tier", ["server", "gateway"])
def test_the_metrics_page_is_clean(tiers: Tiers, tier: str) -> None:
    tiers.edit(request())
    page = tiers.metrics_page(tier)
    assert f"retouch_{tier}_" in page
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
