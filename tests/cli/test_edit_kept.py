"""`retouch edit` whose images come in part: what came is kept, what did not is said."""

import json

import pytest

from tests.cli.conftest import Edit, made
from tests.cli.fake_gateway import Answer, FakeGateway, completed, event, stream

CUT = {"content-type": "text/event-stream", "content-length": "9999"}
BROKEN = event("error", {"error": {"message": "it broke", "param": None, "code": 500}})


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (stream(completed(7), completed(8), BROKEN), "it broke"),
        (stream(completed(7), completed(8), completed()[:60]), "sent 2 of 3 images"),
        (stream(completed(7), completed(8), completed(9, b64_json="%")), "makes no sense"),
        (Answer(200, completed(7) + completed(8), CUT), "lost http"),
    ],
)
def test_what_came_before_it_failed_is_kept(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str], end: Answer, said: str
) -> None:
    gateway.answers = [end]
    assert edit("photo.png", "night", "-n", "3") == 1
    told = capsys.readouterr()
    assert made() == told.out.split() == ["photo-edited-1.png", "photo-edited-2.png"]
    kept, why = told.err.splitlines()
    assert kept == "Kept 2 of 3 images, seeds 7 to 8"
    assert said in why
    assert edit("photo.png", "night", "-n", "3", "--json", "-f") == 1
    answer = json.loads(capsys.readouterr().out)
    assert said in answer["error"]["message"]
    assert answer["images"] == [
        {"file": "photo-edited-1.png", "seed": 7, "prompt": "night"},
        {"file": "photo-edited-2.png", "seed": 8, "prompt": "night"},
    ]


def test_more_images_than_were_asked_for(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [stream(completed(7), completed(8))]
    assert edit() == 1
    assert "sent more than 1 images" in capsys.readouterr().err
    assert made() == ["photo-edited.png"]
