"""Signing keys: what their file may say, and a change of them under a running gateway, seen by callers."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch_gateway import watched
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import SettingsError, load
from retouch_gateway.signing import SigningKeys
from tests.gateway.conftest import Live, StartGateway, b64, error_of, picture
from tests.gateway.several import until

PICTURE = b64(picture())
OLD, NEW = "old-key-0123456789abcdef", "new-key-0123456789abcdef"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "signing-key"
    path.write_text(OLD)
    return path


@pytest.mark.parametrize(
    "text",
    [f"{OLD},{NEW}", f" {OLD} , {NEW} \n", f"{OLD}\n{NEW}\n", f"\r\n{OLD}\r\n\r\n{NEW},,\n"],
)
def test_as_the_variable_has_them_or_a_line_each(file: Path, text: str) -> None:
    file.write_text(text)
    keys = SigningKeys(file, [b"of no use here"], Metrics())
    assert list(keys) == [OLD.encode(), NEW.encode()]
    assert (keys[0], keys[1:]) == (OLD.encode(), (NEW.encode(),))


def test_while_one_goes_through_them_they_stay_what_they_are(file: Path) -> None:
    """Of two orders of the same keys none would be missed, whichever is seen."""
    file.write_text(f"{NEW}\n{OLD}")
    keys = SigningKeys(file, [], Metrics())
    seen = []
    for key in keys:
        seen.append(key)
        keys._watched.value = (OLD.encode(), NEW.encode())
    assert seen == [NEW.encode(), OLD.encode()]


def test_without_a_file_those_that_are_given(tmp_path: Path) -> None:
    assert list(SigningKeys(None, [b"given"], Metrics())) == [b"given"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no key in it"),
        (" \n,\n", "has no key in it"),
        (f"{OLD}\nmy-short-one", "key 2 has less than 16 characters"),
    ],
)
def test_what_a_file_may_not_say_is_told_without_citing_it(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        SigningKeys(file, [], Metrics())
    assert caught.value.lines == [f"RETOUCH_GATEWAY_SIGNING_KEY_FILE: {why}"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="SIGNING_KEY_FILE: cannot be read: Is a directory"):
        SigningKeys(tmp_path, [], Metrics())


def test_the_variable_or_the_file(file: Path) -> None:
    with pytest.raises(SettingsError, match="SIGNING_KEY_FILE: takes the place of SIGNING_KEY"):
        load(["--signing-key", OLD, "--signing-key-file", str(file)])
    assert load(["--signing-key-file", str(file)]).signing_keys == []


def write(file: Path, *keys: str) -> None:
    """All at once."""
    part = file.with_suffix(".part")
    part.write_text("\n".join(keys))
    part.replace(file)


async def becomes(gateway: Live, file: Path, *keys: str) -> None:
    """The file holds these now, and the gateway has taken them up."""
    before = gateway.value("file_reloads_total", file="signing_key", result="ok")
    write(file, *keys)
    await until(
        lambda: gateway.value("file_reloads_total", file="signing_key", result="ok") > before, 10
    )


async def test_a_key_is_followed_by_another_and_no_url_dies_before_its_time(
    start: StartGateway, file: Path
) -> None:
    gateway = await start(signing_key_file=file)

    async def hosted() -> str:
        answer = await gateway.edit()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"][0]["url"])

    async def found(url: str) -> int:
        return (await gateway.client.get(url)).status_code

    first = await hosted()
    await becomes(gateway, file, OLD, NEW)
    second = await hosted()
    await becomes(gateway, file, NEW, OLD)
    third = await hosted()
    assert [await found(url) for url in (first, second, third)] == [200] * 3
    assert (await gateway.client.delete(first)).status_code == 204  # who made it is known still
    await becomes(gateway, file, NEW)
    assert [await found(url) for url in (second, third)] == [404, 200]


async def test_a_reply_is_replayed_whichever_key_named_it(start: StartGateway, file: Path) -> None:
    gateway = await start(signing_key_file=file)

    async def send(key: str, **body: object) -> tuple[int, bytes, bool]:
        given = {"idempotency-key": key}
        answer = await gateway.client.post(
            "/v1/images/edits", json={"images": [PICTURE], "prompt": "x", **body}, headers=given
        )
        return answer.status_code, answer.content, "idempotent-replayed" in answer.headers

    first = await send("one")
    await becomes(gateway, file, NEW, OLD)
    again = await send("one")
    assert again == (200, first[1], True)
    assert (await send("one", prompt="another"))[0] == 422
    second = await send("two")
    await becomes(gateway, file, OLD, NEW)  # and back
    assert await send("two") == (200, second[1], True)
    await becomes(gateway, file, NEW)
    assert (await send("two"))[2]
    assert not (await send("one"))[2]  # no key names it any more


async def test_a_mistake_leaves_the_keys_as_they_were(
    start: StartGateway, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(signing_key_file=file)
    url = (await gateway.edit()).json()["data"][0]["url"]
    write(file, NEW, "my-short-one")
    await until(lambda: gateway.value("file_outdated", file="signing_key") == 1, 10)
    assert gateway.value("file_reloads_total", file="signing_key", result="failed") == 1
    assert (await gateway.client.get(url)).status_code == 200
    assert (await gateway.client.get((await gateway.edit()).json()["data"][0]["url"])).is_success
    assert "key 2 has less than 16 characters" in caplog.text
    for secret in (NEW, OLD, "my-short-one"):
        assert secret not in caplog.text
    await becomes(gateway, file, NEW)
    assert gateway.value("file_outdated", file="signing_key") == 0
    error_of(await gateway.client.get(url), 404)
