"""API keys: what a file may say, who may enter, and a file that changes under a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from retouch_gateway import keys
from retouch_gateway import watched as watching
from retouch_gateway.errors import KeyExpired, Unauthorized
from retouch_gateway.keys import ANONYMOUS, Keys, KeysError
from retouch_gateway.metrics import Metrics
from tests.gateway import several
from tests.gateway.conftest import StartGateway, error_of


def entry(key_id: str, secret: str, more: str = "") -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[[keys]]\nid = "{key_id}"\nhash = "sha256:{digest}"\n{more}\n'


ADA, BOB = entry("ada", "secret-a"), entry("bob", "secret-b")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(ADA + BOB)
    return path


def who(found: Keys, **headers: str) -> str:
    """The id of the key that the headers bear, or 401."""
    given = Headers({name.replace("_", "-"): text for name, text in headers.items()})
    try:
        return found.find(given).id
    except Unauthorized:
        return "401"


def mistakes(path: Path, text: str | bytes) -> list[str]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KeysError) as caught:
        keys.read(path)
    return list(caught.value.lines)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer secret-a"}, "ada"),
        ({"authorization": "bearer  secret-b "}, "bob"),
        ({"x_api_key": "secret-b"}, "bob"),
        ({"x_api_key": "secret-a", "authorization": "Bearer made-up"}, "ada"),
        ({"x_api_key": "secret-a", "authorization": "Basic eDp5"}, "ada"),
        ({"x_api_key": "", "authorization": "Bearer secret-b"}, "bob"),
        ({"x_api_key": "made-up", "authorization": "Bearer secret-a"}, "401"),
        ({}, "401"),
        ({"authorization": "Bearer"}, "401"),
        ({"authorization": "Bearer "}, "401"),
        ({"authorization": "secret-a"}, "401"),
        ({"authorization": "Basic secret-a"}, "401"),
        ({"authorization": "Bearer secret-a secret-b"}, "401"),
        ({"authorization": "Bearer secret-A"}, "401"),
        ({"authorization": "Bearer sécret"}, "401"),
        ({"x_api_key": "ada"}, "401"),
        ({"x_api_key": hashlib.sha256(b"secret-a").hexdigest()}, "401"),
    ],
)
def test_who_a_request_is_from(file: Path, headers: dict[str, str], expected: str) -> None:
    assert who(Keys(file, Metrics()), **headers) == expected


def test_a_refusal_gives_no_hint(file: Path) -> None:
    found = Keys(file, Metrics())
    for headers in ({}, {"x-api-key": "secret"}, {"authorization": "Bearer ada"}):
        with pytest.raises(Unauthorized) as caught:
            found.find(Headers(headers))
        assert caught.value.message == Unauthorized.default
        assert caught.value.headers == {"www-authenticate": "Bearer"}


def test_without_a_file_nobody_needs_a_key() -> None:
    free = Keys(None, Metrics())
    for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "x"}):
        assert free.find(Headers(headers)) is ANONYMOUS
    assert (ANONYMOUS.id, ANONYMOUS.rate_limit, ANONYMOUS.concurrency) == ("", (), None)


@pytest.mark.parametrize(
    ("secret", "whose"), [("secret-a", "ada"), ("secret-b", "bob"), ("x", "401")]
)
def test_all_keys_are_compared_in_constant_time_whichever_fits(
    file: Path, monkeypatch: pytest.MonkeyPatch, secret: str, whose: str
) -> None:
    found, compared = Keys(file, Metrics()), list[str]()
    compare = hmac.compare_digest

    def spy(one: str, other: str) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert who(found, x_api_key=secret) == whose
    assert compared == [key.hash for key in keys.read(file)]
    assert len(compared) > 1


def test_the_hash_of_nothing_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(entry("nobody", ""))
    assert who(Keys(tmp_path / "keys", Metrics())) == "401"


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    assert who(Keys(tmp_path / "keys", Metrics()), x_api_key="secret-a") == "401"


def test_limits_of_an_entry(file: Path) -> None:
    file.write_text(
        entry("ada", "a", 'rate_limit = "10/second; 1000/day"\nconcurrency = 4') + entry("bob", "b")
    )
    ada, bob = keys.read(file)
    assert [(rate.amount, rate.get_expiry()) for rate in ada.rate_limit] == [(10, 1), (1000, 86400)]
    assert ada.concurrency == 4
    assert (bob.rate_limit, bob.concurrency) == ((), None)
    assert "sha256" not in repr(ada)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('hash = "sha256:' + "0" * 64 + '"', "keys[0].id", "required"),
        ('id = "a"', "keys[0].hash", "required"),
        ('id = "a/b"', "keys[0].id", "pattern"),
        ('id = ""', "keys[0].id", "pattern"),
        ('id = "a\\n"', "keys[0].id", "pattern"),
        ('id = "' + "a" * 65 + '"', "keys[0].id", "pattern"),
        ("id = 1", "keys[0].id", "string"),
        ('hash = "rt_oh-no-the-key-itself"', "keys[0].hash", "sha256:"),
        ('hash = "sha256:' + "A" * 64 + '"', "keys[0].hash", "pattern"),
        ('hash = "sha256:' + "0" * 64 + '\\n"', "keys[0].hash", "pattern"),
        ('rate_limit = "0/minute"', "keys[0].rate_limit", "60/minute"),
        ('rate_limit = "60/min"', "keys[0].rate_limit", "60/minute"),
        ('rate_limit = "60/minute;"', "keys[0].rate_limit", "60/minute"),
        ('rate_limit = "60/minute\\n"', "keys[0].rate_limit", "60/minute"),
        ("rate_limit = 60", "keys[0].rate_limit", "60/minute"),
        ("concurrency = 0", "keys[0].concurrency", "1"),
        ('expires = "2027-03-01"', "keys[0].expires", "2027-03-01"),
        ("expires = 2027-03-01T12:00:00", "keys[0].expires", "2027-03-01T12:00:00Z"),
        ("expires = 9999-12-31T23:59:59-12:00", "keys[0].expires", "9999"),
        ("expires = 12:00:00", "keys[0].expires", "2027-03-01"),
        ("expires = 90", "keys[0].expires", "2027-03-01"),
        ("concurrency = 1001", "keys[0].concurrency", "1000"),
        ("concurrency = true", "keys[0].concurrency", "integer"),
        ('concurrency = "4"', "keys[0].concurrency", "integer"),
        ("since = 2027-01-01", "keys[0].since", "not permitted"),
    ],
)
def test_what_an_entry_may_not_say(tmp_path: Path, text: str, where: str, what: str) -> None:
    [line] = [
        line
        for line in mistakes(tmp_path / "keys", f"[[keys]]\n{text}\n")
        if line.startswith(where + ": ")
    ]
    assert what in line
    assert "oh-no" not in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[keys]]\nid = ada", "is not TOML: Invalid value (at line 2, column 6)"),
        (b"# \xff", "is not TOML"),
        (b"\x00", "is not TOML"),
        ("keys = " + "[" * 5000, "is not TOML"),
        ("keys = 5", "keys: Input should be"),
        ("keys = [5]", "keys[0]: Input should be"),
        ("[[key]]", "key: Extra inputs"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | bytes, expected: str) -> None:
    [line] = mistakes(tmp_path / "keys", text)
    assert line.startswith(expected)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    lines = mistakes(
        tmp_path / "keys",
        ADA + entry("bob", "secret-a", "colour = 1") + entry("ada", "x", "concurrency = 0"),
    )
    assert [line.partition(":")[0] for line in lines] == [
        "keys[1].colour",
        "keys[2].concurrency",
        "keys[2].id",
        "keys[1].hash",
    ]
    assert lines[2].endswith("is that of keys[0] too")


@pytest.mark.parametrize(
    "text", ["2027-03-01", "2027-03-01T00:00:00Z", "2027-03-01T01:30:00+01:30"]
)
def test_when_a_key_expires(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the second; and it opens nothing more, while the other keys do."""
    last = datetime(2027, 3, 1, tzinfo=UTC).timestamp()
    now = last - 1
    monkeypatch.setattr("time.time", lambda: now)
    file = tmp_path / "keys"
    file.write_text(entry("ada", "secret-a", f"expires = {text}") + BOB)
    metrics = Metrics()
    found = Keys(file, metrics)
    value = metrics.registry.get_sample_value
    assert who(found, x_api_key="secret-a") == "ada"
    assert value("retouch_gateway_key_next_expiry_timestamp_seconds") == last
    now = last
    with pytest.raises(KeyExpired) as caught:
        found.find(Headers({"x-api-key": "secret-a"}))
    assert caught.value.key_id == "ada"
    assert caught.value.message == "This API key expired at 2027-03-01 00:00:00 UTC."
    assert who(found, x_api_key="secret-b") == "bob"
    assert who(found, x_api_key="secret-c") == "401"
    assert value("retouch_gateway_expired_keys_total") == 1
    assert value("retouch_gateway_key_next_expiry_timestamp_seconds") == math.inf


def test_the_next_expiry_is_the_first_of_those_ahead(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(
        entry("old", "a", "expires = 2020-01-01")
        + entry("far", "b", "expires = 2999-01-01")
        + entry("near", "c", "expires = 2998-01-01")
        + entry("ever", "d")
    )
    metrics = Metrics()
    Keys(tmp_path / "keys", metrics)
    when = metrics.registry.get_sample_value("retouch_gateway_key_next_expiry_timestamp_seconds")
    assert when == datetime(2998, 1, 1, tzinfo=UTC).timestamp()


async def test_an_expired_key_is_a_401_that_says_so_and_the_log_says_whose(
    start: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.access")
    file = tmp_path / "keys.toml"
    file.write_text(entry("ada", "secret-a", "expires = 2020-01-01"))
    gateway = await start(keys=file)
    headers = {"x-api-key": "secret-a"}
    for response in (
        await gateway.client.post("/v1/images/edits", headers=headers, json={}),
        await gateway.client.get("/v1/models", headers=headers),
    ):
        error = error_of(response, 401)
        assert error["message"] == "This API key expired at 2020-01-01 00:00:00 UTC."
        assert error["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
    assert gateway.value("expired_keys_total") == 2
    assert [vars(record)["key"] for record in caplog.records] == ["ada", "ada"]


def test_a_repeated_id_alone_is_refused(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "keys", ADA + entry("ada", "other")) == [
        "keys[1].id: is that of keys[0] too"
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read: No such file"):
        Keys(tmp_path / "none", Metrics())


def becomes(path: Path, text: str) -> None:
    """The file has this in it now, all at once."""
    if path.is_dir():
        path.rmdir()
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def broken(path: Path) -> None:
    becomes(path, ADA + '[[keys]]\nid = "eve"\nhash = "rt_the-key-itself"\n')


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[tuple[Keys, Metrics]]:
    metrics = Metrics()
    found = Keys(path, metrics)
    watching = asyncio.create_task(found.watch_forever())
    yield found, metrics
    assert not watching.done()
    watching.cancel()


def reloads(metrics: Metrics, result: str) -> float | None:
    name = "retouch_gateway_file_reloads_total"
    return metrics.registry.get_sample_value(name, {"file": "keys", "result": result})


def outdated(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("retouch_gateway_file_outdated", {"file": "keys"})


until = partial(several.until, seconds=5)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.02)


async def test_a_changed_file_is_taken_up(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.keys")
    async with watched(file) as (found, metrics):
        becomes(file, BOB)
        await until(lambda: who(found, x_api_key="secret-a") == "401")
        assert who(found, x_api_key="secret-b") == "bob"
        becomes(file, ADA)
        await until(lambda: who(found, x_api_key="secret-a") == "ada")
        assert who(found, x_api_key="secret-b") == "401"
        await until(lambda: reloads(metrics, "ok") == 2)
        assert caplog.messages == ["keys: 1 in force"] * 2
        assert reloads(metrics, "failed") == 0


@pytest.mark.parametrize("first", [BOB[:0], BOB[:9], BOB[:40]])
async def test_a_file_that_is_still_being_written_is_not_taken_up(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.keys")
    contents = watching.contents

    def looked(path: Path) -> bytes | str:
        found = contents(path)
        if found == first.encode():
            path.write_text(BOB)  # right after somebody looked
        return found

    monkeypatch.setattr(watching, "contents", looked)
    async with watched(file) as (found, metrics):
        becomes(file, first)
        await until(lambda: bool(reloads(metrics, "ok")))
        assert caplog.messages == ["keys: 1 in force"]
        assert who(found, x_api_key="secret-b") == "bob"
        assert reloads(metrics, "failed") == 0


async def test_a_file_that_is_emptied_lets_nobody_in(file: Path) -> None:
    async with watched(file) as (found, _):
        becomes(file, "")
        await until(lambda: who(found, x_api_key="secret-a") == "401")


async def test_a_link_that_is_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    for version, text in (("..1", ADA), ("..2", BOB)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.toml").write_text(text)
        os.utime(tmp_path / version / "keys.toml", (1, 1))  # nothing but the inode tells them apart
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.toml").symlink_to("..data/keys.toml")
    async with watched(tmp_path / "keys.toml") as (found, _):
        assert who(found, x_api_key="secret-a") == "ada"
        (tmp_path / "..next").symlink_to("..2")
        (tmp_path / "..next").rename(tmp_path / "..data")
        await until(lambda: who(found, x_api_key="secret-b") == "bob")
        assert who(found, x_api_key="secret-a") == "401"


@pytest.mark.parametrize("harm", [broken, gone, a_folder])
async def test_a_broken_file_leaves_the_keys_as_they_were(
    file: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(file) as (found, metrics):
        harm(file)
        await until(lambda: bool(reloads(metrics, "failed")))
        await asyncio.sleep(0.2)  # it is looked at again and again, and told once
        messages = [text for text in caplog.messages if "not taken up" in text]
        assert len(messages) == reloads(metrics, "failed")
        assert len(messages) <= 2  # a folder in its place is gone first
        assert outdated(metrics) == 1
        assert "the-key-itself" not in caplog.text
        assert who(found, x_api_key="secret-a") == "ada"
        assert who(found, x_api_key="secret-b") == "bob"

        becomes(file, BOB)
        await until(lambda: who(found, x_api_key="secret-a") == "401")
        assert who(found, x_api_key="secret-b") == "bob"
        await until(lambda: outdated(metrics) == 0)


async def test_without_a_file_there_is_nothing_to_watch() -> None:
    await asyncio.wait_for(Keys(None, Metrics()).watch_forever(), 10)
