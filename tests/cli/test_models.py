"""`retouch models`: the table, the one, and answers that make no sense."""

import io
import json
import sys
from typing import Any

import pytest

from retouch_cli.commands import main
from tests.cli.fake_gateway import Answer, FakeGateway, failed

POCKET: dict[str, Any] = {
    "id": "pocket",
    "pipeline": "StableDiffusionInstructPix2PixPipeline",
    "capabilities": {"mask": True, "strength": True, "negative_prompt": False, "max_mode": False},
    "defaults": {"strength": 1.0, "guidance_scale": 1.5, "num_inference_steps": 6},
    "limits": {
        "max_images": 1,
        "size_multiple": 8,
        "min_pixels": 4096,
        "max_pixels": 1048576,
        "max_image_bytes": 4194304,
    },
    "examples": ["add snow", "it's \x1b[31m[red]night[/red]"],
}
BARE = {**POCKET, "id": "org/large", "capabilities": {}, "defaults": {"num_inference_steps": 28}}
del BARE["examples"]


def answered(body: Any) -> list[Answer]:
    return [Answer(200, json.dumps(body).encode())]


def test_a_row_for_each(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers = answered({"data": [POCKET, BARE]})
    assert main(["models"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "pocket 1 mask, strength strength 1, guidance 1.5, steps 6 64² to 1024²" in rows
    assert "org/large 1 steps 28 64² to 1024²" in rows


def test_one(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers = answered(POCKET)
    assert main(["models", "pocket"]) == 0
    said = capsys.readouterr().out
    assert "retouch edit photo.jpg 'add snow'\n" in said
    assert "--mask, --strength" in said
    assert "4 MiB" in said
    assert "[red]" in said
    assert "\x1b" not in said
    gateway.answers = answered(BARE)
    assert main(["models", "org/large"]) == 0
    assert "To try it" not in capsys.readouterr().out
    assert [path for _, path, _, _ in gateway.requests] == [
        "/v1/models/pocket",
        "/v1/models/org%2Flarge",
    ]


def test_a_terminal_that_lacks_a_letter(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answers = answered({**POCKET, "examples": ["it’s night"]})
    with io.TextIOWrapper(io.BytesIO(), "ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert main(["models", "pocket"]) == 0
        assert b"it\\u2019s night" in narrow.buffer.getvalue()


def test_json_is_the_gateways_own(gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers = answered({"data": [POCKET], "new": 1})
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"data": [POCKET], "new": 1}


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (failed(404, "model 'x' is not served here", "model"), 3, "ID: model 'x' is not served"),
        (failed(401, "no"), 4, "wants an API key"),
        (failed(503, "no server is ready", retry_after="60"), 5, "no server is ready"),
        (Answer(200, b"<html>"), 1, "not a Retouch gateway"),
        (Answer(200, b'{"data": [{}]}'), 1, "makes no sense"),
        (Answer(200, b"[]"), 1, "makes no sense"),
        (Answer(200, b'{"data": null}'), 1, "makes no sense"),
        (answered({"data": [{**POCKET, "defaults": {"strength": "x"}}]})[0], 1, "makes no sense"),
        (Answer(200, b"[" * 50_000), 1, "not a Retouch gateway"),
    ],
)
def test_failures(
    gateway: FakeGateway,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    status: int,
    said: str,
) -> None:
    gateway.answers = [answer]
    assert main(["models"]) == status
    assert said in capsys.readouterr().err
