"""`retouch key new`: what it prints where, what it does to the file, and that a gateway takes the key."""

import contextlib
import datetime
import os
import re
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from retouch_cli import key
from retouch_cli.commands import main
from retouch_gateway import keys
from retouch_gateway.errors import Unauthorized
from retouch_gateway.metrics import Metrics
from tests.run_up import wait_for

BIN = Path(sys.executable).parent
SECRET = re.compile(r"rt_[A-Za-z0-9_-]{43}\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def new(*arguments: str | Path) -> int:
    return main(["key", "new", *map(str, arguments)])


def test_a_key_opens_a_gateway(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new("ada", "--file", file) == 0
    ada = capsys.readouterr().out
    assert new("bob.2", "--file", file, "--rate-limit", "10/minute; 90/day", "--concurrency=4") == 0
    bob = capsys.readouterr().out
    assert SECRET.fullmatch(ada)
    assert SECRET.fullmatch(bob)
    assert ada != bob

    gateway = keys.Keys(file, Metrics())
    assert gateway.find(Headers({"authorization": f"Bearer {ada.strip()}"})).id == "ada"
    found = gateway.find(Headers({"x-api-key": bob.strip()}))
    assert found.id == "bob.2"
    assert [rate.amount for rate in found.rate_limit] == [10, 90]
    assert found.concurrency == 4
    with pytest.raises(Unauthorized):
        gateway.find(Headers({"x-api-key": ada.strip()[:-1]}))
    assert ada.strip() not in file.read_text()


def test_a_running_gateway_takes_up_new_keys(file: Path, tmp_path: Path) -> None:
    def made(name: str) -> str:
        command: list[str | Path] = [BIN / "retouch", "key", "new", name, "--file", file]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    def status(secret: str) -> int:
        return httpx.get(f"{url}/v1/models", headers={"x-api-key": secret}).status_code

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/healthz").is_success
        return False

    ada = made("ada")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [BIN / "retouch-gateway", "--port", str(port), "--metrics-port=0"]
    command += ["--upstream=127.0.0.1:1", "--store", tmp_path / "images", "--keys", file]
    with (tmp_path / "log").open("w") as log:
        gateway = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(answers, 30, "the gateway answers")
        assert status(ada) == 503  # let in; but there is no server
        assert status("rt_unknown") == 401
        bob = made("bob")
        wait_for(lambda: status(bob) == 503, 10, "the new key is taken up")
        assert status(ada) == 503
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0
    said = (tmp_path / "log").read_text()
    assert "keys: 2 in force" in said
    assert ada not in said
    assert bob not in said


def test_without_a_file_the_entry_is_on_stderr(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("ada", "--concurrency", "2") == 0
    captured = capsys.readouterr()
    assert SECRET.fullmatch(captured.out)
    assert captured.out.strip() not in captured.err
    file.write_text("[[keys]]" + captured.err.partition("[[keys]]")[2].partition("\n\n")[0])
    gateway = keys.Keys(file, Metrics())
    assert gateway.find(Headers({"x-api-key": captured.out.strip()})).concurrency == 2


def test_a_pipe_gets_the_key_alone(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retouch_cli", "key", "new", "ada", "--file", file],
        capture_output=True,
        check=True,
        text=True,
    )
    assert SECRET.fullmatch(done.stdout)
    assert done.stderr == f"Added ada to {file}. The key, shown this once:\n"


def test_a_new_file_is_for_its_owner_alone(file: Path) -> None:
    new("ada", "--file", file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [*file.parent.iterdir()] == [file]


def test_what_the_file_has_stays(file: Path) -> None:
    file.write_text('# Schlüssel\n[[keys]]\nid = "eve"  # no newline at the end')
    file.chmod(0o640)
    inode = file.stat().st_ino
    new("ada", "--file", file)
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_ino != inode  # replaced: whoever reads it never sees a half
    text = file.read_text()
    assert text.startswith('# Schlüssel\n[[keys]]\nid = "eve"  # no newline at the end\n\n[[keys]]')
    assert [entry["id"] for entry in tomllib.loads(text)["keys"]] == ["eve", "ada"]


def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    new("ada", "--file", link)
    assert link.is_symlink()
    assert [found.id for found in keys.read(file)] == ["ada"]


def test_an_id_that_is_there_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("ada", "--file", file)
    before = file.read_bytes()
    capsys.readouterr()
    assert new("ada", "--file", file) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"retouch: {file} has a key ada already\n"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"[[keys", "is not a file of keys"),
        (b"keys = 5", "is not a file of keys"),
        (b'keys = ["ada"]', "is not a file of keys"),
        (b'keys = [{id = "eve"}]', "is not a file of keys"),  # nothing can be added to that
        (b"[keys]", "is not a file of keys"),
        (b"# \xff", "is not text"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    file: Path, contents: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(contents)
    assert new("ada", "--file", file) == 1
    assert capsys.readouterr() == ("", f"retouch: {file} {reason}\n")
    assert file.read_bytes() == contents
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("none/keys.toml", "No such file or directory"),
        ("", "it is no file"),
        ("pipe", "it is no file"),  # nor is a device, which must not be replaced
    ],
)
def test_a_file_that_cannot_be_written(
    tmp_path: Path, place: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert new("ada", "--file", tmp_path / place) == 1
    assert capsys.readouterr() == ("", f"retouch: cannot write {tmp_path / place}: {reason}\n")


def test_a_failure_half_way_leaves_the_file_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new("ada", "--file", file)
    before = file.read_bytes()
    capsys.readouterr()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert new("bob", "--file", file) == 1
    assert capsys.readouterr() == (
        "",
        f"retouch: cannot write {file}: No space left on device\n",
    )
    assert file.read_bytes() == before
    assert [*file.parent.iterdir()] == [file]


def test_many_at_once_lose_nothing(file: Path) -> None:
    names = [f"key-{i}" for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda name: new(name, "--file", file), names)) == {0}
    assert sorted(found.id for found in keys.read(file)) == sorted(names)


@pytest.mark.parametrize(
    ("given", "hours"),
    [
        ("90d", 90 * 24),
        ("12h", 12),
        ("99999d", 99_999 * 24),
        ("2999-03-01", None),
        ("2999-03-01T12:00:00Z", None),
        ("2999-03-01T01:00:00+01:00", None),
    ],
)
def test_a_key_that_expires(file: Path, given: str, hours: int | None) -> None:
    assert new("ada", "--file", file, "--expires", given) == 0
    [ada] = keys.read(file)
    assert ada.expires is not None
    assert not ada.expired
    if hours:
        ahead = ada.expires - datetime.datetime.now(datetime.UTC)
        assert abs(ahead - datetime.timedelta(hours=hours)) < datetime.timedelta(minutes=5)
    else:
        noon = "12:00:00" if "T12" in given else "00:00:00"
        assert f"{ada.expires:%Y-%m-%d %X %Z}" == f"2999-03-01 {noon} UTC"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["a/b"],
        ['a"\nb'],
        [".a"],
        ["a" * 65],
        ["ada", "--rate-limit", "0/minute"],
        ["ada", "--rate-limit", '1/day"'],
        ["ada", "--rate-limit", "60"],
        ["ada", "--concurrency", "0"],
        ["ada", "--concurrency", "1001"],
        ["ada", "--concurrency", "two"],
        ["ada", "--expires", ""],
        ["ada", "--expires", "0d"],
        ["ada", "--expires", "90"],
        ["ada", "--expires", "90m"],
        ["ada", "--expires", "2020-01-01"],
        ["ada", "--expires", "2999-02-30"],
        ["ada", "--expires", "2999-03-01T12:00:00"],
        ["ada", "--expires", "9999-12-31T23:59:59-12:00"],
        ["ada", "--expires", "tomorrow"],
    ],
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        new(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_key_alone_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["key"])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


# What either side takes the other must too, though they share no code.


@given(text=st.from_regex(key.RATES, fullmatch=True))
def test_every_rate_that_is_taken_here_the_gateway_takes(text: str) -> None:
    assert keys.rates(text)


@given(
    id_=st.from_regex(key.ID, fullmatch=True),
    concurrency=st.sampled_from([1, key.MAX_CONCURRENCY]),
)
def test_every_id_too(id_: str, concurrency: int) -> None:
    digest = f"sha256:{'0' * 64}"
    assert keys.Key(id=id_, hash=digest, concurrency=concurrency).id == id_


def test_the_limits_of_both_are_the_same() -> None:
    assert key.MAX_CONCURRENCY == keys.MAX_CONCURRENCY
    assert key.RATES.pattern == keys._RATES.pattern
    assert f"^{key.ID.pattern}$" == keys.Key.model_fields["id"].metadata[0].pattern
