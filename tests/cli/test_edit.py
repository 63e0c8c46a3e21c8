"""`retouch edit` against a gateway that answers as told: what is sent, what is said, what is never sent."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from retouch_cli.commands import main
from tests.cli.conftest import Edit, made
from tests.cli.fake_gateway import DONE, PNG, Answer, FakeGateway, completed, event, failed, stream


def test_the_result_is_beside_where_one_is(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit() == 0
    said = capsys.readouterr()
    assert said.out == "photo-edited.png\n"
    assert "pocket made 64x64" in said.err
    assert "seed 7\n" in said.err
    assert Path("photo-edited.png").read_bytes() == PNG
    method, path, headers, body = gateway.requests[0]
    assert (method, path) == ("POST", "/v1/images/edits")
    assert headers["content-type"].startswith("multipart/form-data")
    assert PNG in body
    assert b"photo.png" not in body, "what a file is called here is nobody's business"
    assert "authorization" not in headers


def test_every_option_is_a_field(edit: Edit, gateway: FakeGateway) -> None:
    gateway.answers = [stream(completed(2**64 - 2), completed(2**64 - 1))]
    options = (
        "--mask photo.png -n 2 --seed 18446744073709551614 --size 64x64 --strength 0.5 "
        "--guidance-scale 3 --steps 5 --negative-prompt no --model m --max-mode --quality 80"
    )
    assert edit("photo.png", *options.split(), "photo.png", "-o", "a.webp", "two words") == 0
    assert made() == ["a-1.webp", "a-2.webp"]
    body = gateway.requests[0][3]
    for name, value in {
        "prompt": "two words",
        "n": "2",
        "seed": "18446744073709551614",
        "size": "64x64",
        "strength": "0.5",
        "guidance_scale": "3",
        "num_inference_steps": "5",
        "negative_prompt": "no",
        "model": "m",
        "kontext_max_mode": "true",
        "output_format": "webp",
        "output_compression": "80",
        "stream": "true",
    }.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body, name
    assert body.count(b'name="image[]"') == 2
    assert body.count(b' name="mask"') == 1


def test_json_says_all_and_keeps_every_digit_of_a_seed(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [stream(completed(2**64 - 2), completed(2**64 - 1))]
    assert edit("photo.png", "night", "-n", "2", "--json", "-o", "{seed}.png", "-q") == 0
    said = capsys.readouterr()
    assert said.err == ""
    answer = json.loads(said.out)
    assert answer.pop("seconds") >= 0
    files = ["18446744073709551614.png", "18446744073709551615.png"]
    assert answer == {
        "model": "pocket",
        "size": "64x64",
        "format": "png",
        "usage": {"input_images": 2, "output_images": 2, "steps": 12},
        "images": [{"file": file, "seed": int(file[:-4]), "prompt": "night"} for file in files],
    }
    assert made() == files


def test_a_long_prompt_is_no_file(edit: Edit, gateway: FakeGateway) -> None:
    assert edit("photo.png", "x" * 4000) == 0
    assert b"x" * 4000 in gateway.requests[0][3]


def test_names_and_words_that_are_no_utf8(
    edit: Edit, gateway: FakeGateway, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    name = os.fsdecode(b"\xff.png")
    assert edit("photo.png", "night", "-o", name) == 0
    assert Path(name).read_bytes() == PNG
    assert edit(name, "night", "-o", name) == 1
    said = capfdbinary.readouterr()
    assert said.out == b"\xff.png\n"
    assert b"\\udcff.png is there already" in said.err
    assert edit("photo.png", os.fsdecode(b"\xff")) == 2
    assert len(gateway.requests) == 1


def test_quiet_says_nothing(edit: Edit, capsys: pytest.CaptureFixture[str]) -> None:
    assert edit("photo.png", "night", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_comments_and_unknown_events_are_passed_over(edit: Edit, gateway: FakeGateway) -> None:
    chunks = b': queued {"position":3}\n\n: keep-alive\n\n: news {}\n\n' + event("other", 1)
    gateway.answers = [
        stream(chunks, b': step {"image_index":9,"step":1,"total":2}\r\n\r\n', completed())
    ]
    assert edit() == 0


def test_a_prompt_with_a_line_separator_does_not_break_the_stream(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers = [stream(completed(prompt="a\u2028b\x85c\x0bd"))]
    assert edit("photo.png", "night", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["prompt"] == "a\u2028b\x85c\x0bd"


def test_the_key_is_sent_and_never_shown(
    edit: Edit,
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RETOUCH_API_KEY", "rt_environment")
    assert edit() == 0
    Path("key").write_text("rt_file\n")
    gateway.answers = [failed(401, "no")]
    assert edit("photo.png", "night", "-o", "b.png", "--key-file", "key") == 4
    sent = [headers["authorization"] for _, _, headers, _ in gateway.requests]
    assert sent == ["Bearer rt_environment", "Bearer rt_file"]
    said = capsys.readouterr()
    assert "does not know this API key" in said.err
    assert "rt_" not in said.err + said.out


def test_a_key_that_has_expired(
    edit: Edit,
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RETOUCH_API_KEY", "rt_old")
    gateway.answers = [failed(401, "This API key expired at 2026-11-30 00:00:00 UTC.")]
    assert edit() == 4
    assert capsys.readouterr().err == "retouch: This API key expired at 2026-11-30 00:00:00 UTC.\n"


@pytest.mark.parametrize("key", ["two words", "schlüssel", "a\nb"])
def test_a_key_that_can_be_none_is_not_sent(
    edit: Edit, gateway: FakeGateway, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("key").write_text(key)
    assert edit("photo.png", "night", "--key-file", "key") == 2
    assert gateway.requests == []
    assert key not in capsys.readouterr().err


def test_no_key(edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers = [failed(401, "An API key is needed")]
    assert edit() == 4
    assert "RETOUCH_API_KEY" in capsys.readouterr().err


def test_a_picture_that_is_too_large_is_not_sent(
    edit: Edit, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("photo.png").open("ab") as file:
        file.truncate(5 * 2**20)
    limits: dict[str, Any] = {"limits": {"max_image_bytes": 2**22}}
    gateway.answers = [Answer(200, json.dumps(limits).encode())]
    assert edit("photo.png", "night", "--model", "a/b") == 3
    assert "photo.png has 5242880 bytes; at most 4194304 are allowed" in capsys.readouterr().err
    assert [path for _, path, _, _ in gateway.requests] == ["/v1/models/a%2Fb"]
    gateway.answers = [Answer(200, b'{"data": [{"limits": {"max_image_bytes": 9999999}}]}'), DONE]
    assert edit() == 0


@pytest.mark.parametrize("body", [b"[]", b'{"data": null}', b'{"data": [{"limits": []}]}'])
def test_where_models_say_no_limit_a_large_picture_is_sent(
    edit: Edit, gateway: FakeGateway, body: bytes
) -> None:
    with Path("photo.png").open("ab") as file:
        file.truncate(5 * 2**20)
    gateway.answers = [Answer(200, body), DONE]
    assert edit() == 0


def test_a_text_file_of_windows(
    edit: Edit, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("wish.txt").write_bytes(b"\xef\xbb\xbfmake it night\r\n")
    assert edit("photo.png", "--prompt-file", "wish.txt") == 0
    assert b'name="prompt"\r\n\r\nmake it night\r\n' in gateway.requests[0][3]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "a photo is needed"),
        (["photo.png"], 2, "a photo and a prompt are needed"),
        (["photo.png", "photo.png"], 2, "the last word is the prompt"),
        (["--prompt", "night"], 2, "a photo is needed"),
        (["-", "-", "night"], 2, "only once"),
        (["-", "night", "--mask", "-"], 2, "only once"),
        (["-", "night", "--key-file", "-"], 2, "only once"),
        (["photo.png", "make", "it", "night"], 2, "no file make; is the prompt in quotes?"),
        (["photo.png", "night", "--key-file", "empty.png"], 2, "--key-file: empty.png is empty"),
        (["photo.png", "night", "-o", "", "-n", "2"], 2, "-o: must be a name"),
        (["photo.png", "night", "--url", ""], 2, "--url: must be such as"),
        (["photo.png", "night", "--url", "http://[v1.x]"], 2, "--url: must be such as"),
        (["photo.png", "night", "--url", "http://xn--/"], 2, "--url: must be such as"),
        (["photo.png", "night", "--url", "http://host/?"], 2, "without user, ? or #"),
        (["photo.png", "night", "--bogus"], 2, "--bogus: not understood"),
        (["photo.png", "night", "--seeds", "7"], 2, "--seeds: not understood"),
        (["photo.png", "night", "--url", "localhost:8000"], 2, "--url: must be such as"),
        (["photo.png", "night", "--url", "http://me:secret@host"], 2, "without user"),
        (["photo.png", "night", "--url", "http://[::1"], 2, "--url"),
        (["photo.png", "night", "--url", "http://host:99999"], 2, "--url"),
        (["nowhere.png", "night"], 1, "cannot read nowhere.png: No such file or directory"),
        (["photo.png", "night", "--mask", "nowhere.png"], 1, "cannot read nowhere.png"),
        (["photo.png", "--prompt-file", "nowhere.txt"], 1, "cannot read nowhere.txt"),
        (["photo.png", "--prompt-file", "photo.png"], 1, "it is not text in UTF-8"),
        (["photo.png", "night", "--key-file", "nowhere"], 1, "cannot read nowhere"),
        ([".", "night"], 1, "cannot read .: Is a directory"),
        (["empty.png", "night"], 3, "empty.png is empty"),
        (["text.png", "night"], 3, "text.png is not a PNG, JPEG or WebP image"),
        (["photo.png", "night", "-o", "nowhere/x.png"], 1, "there is no folder nowhere"),
        (["photo.png", "night", "-o", "photo.png"], 1, "is there already"),
        (["photo.png", "night", "-o", "-", "-n", "2"], 2, "holds one image, not 2"),
        (["photo.png", "night", "-o", "-", "--json"], 2, "cannot both go to standard output"),
        (["-", "night", "--json"], 2, "cannot both go to standard output"),
    ],
)
def test_what_is_wrong_here_is_told_before_anything_is_sent(
    edit: Edit,
    gateway: FakeGateway,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    said: str,
) -> None:
    Path("empty.png").touch()
    Path("text.png").write_text("no picture")
    assert main(["edit", *words]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "secret" not in error
    assert gateway.requests == []


@pytest.mark.parametrize(
    "option",
    [
        "-n=0",
        "-n=11",
        "-n=x",
        "--seed=-1",
        "--seed=18446744073709551616",
        "--timeout=0",
        "--timeout=nan",
        "--format=gif",
        "--prompt=x --prompt-file=y",
    ],
)
def test_options_that_argparse_refuses(edit: Edit, gateway: FakeGateway, option: str) -> None:
    with pytest.raises(SystemExit) as raised:
        edit("photo.png", "night", *option.split())
    assert raised.value.code == 2
    assert gateway.requests == []
