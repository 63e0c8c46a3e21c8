"""`retouch up` against fake tiers: how it starts, what it says of failures, how it ends."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retouch_cli.up import STOP_SECONDS
from tests.cli.conftest import SECONDS, Up, alive
from tests.run_up import wait_for

Start = Callable[..., Up]


def fails_in_one_line(run: Up, pattern: str, expected: int = 1) -> None:
    """That exit status, one line, and no process left."""
    status, said = run.end()
    assert status == expected
    assert re.fullmatch(f"retouch: {pattern}\n", said), said
    for tier in ("retouch-server", "retouch-gateway"):
        assert not (run.folder / tier).exists() or not alive(run.pid(tier))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_edits_then_stops_the_gateway_before_the_server(up: Start, number: signal.Signals) -> None:
    run = up("--photo photo.jpg --prompt turn")
    run.wait_ready()
    assert run.end(number) == (0, "")
    assert run.ended == ["retouch-gateway", "retouch-server"]
    assert (run.folder / ".retouch/edited.png").read_bytes() == b"picture of /images/turn"
    assert re.search(r'Edited photo\.jpg, "turn", in \d+\.\d s:\n', run.output)
    assert "  URL    http://pictures.example/of/images/turn\n" in run.output


def test_without_a_url_the_picture_is_saved_all_the_same(up: Start) -> None:
    run = up(FAKE_GATEWAY="full")
    run.wait_ready()
    assert (run.folder / ".retouch/edited.png").read_bytes() == b"ABC"
    assert "saved  .retouch/edited.png" in run.output
    assert "URL" not in run.output


def test_says_where_the_page_is_and_the_next_edit(up: Start, ports: dict[str, str]) -> None:
    run = up()
    run.wait_ready()
    url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
    assert f"\nOpen {url}/ to try it.\n" in run.output
    assert f'\n  retouch edit --url {url} photo.jpg "make it look like night"\n' in run.output


def test_does_not_say_so_where_the_page_is_off(up: Start) -> None:
    run = up(FAKE_GATEWAY="without-page")
    run.wait_ready()
    assert "to try it" not in run.output


def test_the_first_edit_bears_the_key(up: Start) -> None:
    run = up(FAKE_GATEWAY="wants-key", RETOUCH_API_KEY="rt_ada")
    run.wait_ready()
    assert "saved" in run.output
    assert "rt_ada" not in run.output


def test_the_first_edit_without_a_key(up: Start) -> None:
    fails_in_one_line(up(FAKE_GATEWAY="wants-key"), "http://.* wants an API key: RETOUCH_.*", 4)


def test_passes_the_environment_on_and_derives_the_upstream(
    up: Start, ports: dict[str, str]
) -> None:
    run = up("--no-edit --models mine=/models/mine", RETOUCH_SERVER_QUEUE_SIZE="7")
    run.wait_ready()
    server = json.loads((run.folder / "retouch-server").read_text())
    gateway = json.loads((run.folder / "retouch-gateway").read_text())
    assert server["RETOUCH_SERVER_MODELS"] == "mine=/models/mine"
    assert server["RETOUCH_SERVER_QUEUE_SIZE"] == "7"
    assert gateway["RETOUCH_GATEWAY_UPSTREAM"] == f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}"
    assert not (run.folder / ".retouch/edited.png").exists()
    assert run.end(signal.SIGINT) == (0, "")


def test_logs_are_to_be_read_unless_told_otherwise(up: Start) -> None:
    run = up("--no-edit", RETOUCH_GATEWAY_LOG_FORMAT="json")
    run.wait_ready()
    server = json.loads((run.folder / "retouch-server").read_text())
    gateway = json.loads((run.folder / "retouch-gateway").read_text())
    assert server["RETOUCH_SERVER_LOG_FORMAT"] == "text"
    assert gateway["RETOUCH_GATEWAY_LOG_FORMAT"] == "json"


def test_keeps_an_upstream_that_is_set(up: Start) -> None:
    run = up("--no-edit", RETOUCH_GATEWAY_UPSTREAM="gpu-node:50051")
    run.wait_ready()
    gateway = json.loads((run.folder / "retouch-gateway").read_text())
    assert gateway["RETOUCH_GATEWAY_UPSTREAM"] == "gpu-node:50051"


@pytest.mark.parametrize("tier", ["server", "gateway"])
def test_a_tier_that_does_not_start_is_one_line(up: Start, tier: str) -> None:
    run = up(**{f"FAKE_{tier.upper()}": "dies"})
    fails_in_one_line(
        run,
        rf"retouch-{tier} ended with code 1: retouch-{tier}: no folder /nowhere "
        rf"\(log: \.retouch/{tier}\.log\)",
    )


def test_every_wrong_setting_is_named(up: Start) -> None:
    run = up(FAKE_SERVER="confused")
    fails_in_one_line(
        run,
        r"retouch-server ended with code 2: RETOUCH_X: is wrong; RETOUCH_Y: is wrong too \(.*",
    )


@pytest.mark.parametrize("tier", ["retouch-server", "retouch-gateway"])
def test_a_tier_that_dies_later_is_one_line(up: Start, tier: str) -> None:
    run = up()
    run.wait_ready()
    os.kill(run.pid(tier), signal.SIGKILL)
    fails_in_one_line(run, rf"{tier} was killed by SIGKILL; log: .*")


def test_not_ready_in_time_says_why(up: Start) -> None:
    run = up("--photo photo.jpg --wait 2", FAKE_GATEWAY="never-ready")
    fails_in_one_line(run, r"not ready after 2 s: the model is loading")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_no_time_to_wait(up: Start, value: str) -> None:
    status, said = up(f"--wait={value}").end()
    assert status == 2
    assert "--wait: must be a number of seconds above 0" in said


def test_interrupted_while_starting(up: Start) -> None:
    run = up(FAKE_GATEWAY="never-ready")
    assert all(alive(pid) for pid in run.pids)
    assert run.end(signal.SIGINT) == (0, "")
    assert not any(alive(pid) for pid in run.pids)


def test_the_second_signal_kills(up: Start) -> None:
    run = up(FAKE_GATEWAY="stubborn", FAKE_SERVER="stubborn")
    run.wait_ready()
    run.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping" in run.output, SECONDS, "stopping")
    started = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    fails_in_one_line(run, "killed before both had stopped by themselves")
    assert time.monotonic() - started < STOP_SECONDS - 10  # which each would have


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_killed_parent_takes_its_children_with_it(up: Start) -> None:
    run = up()
    run.wait_ready()
    run.process.kill()
    run.process.wait()
    wait_for(lambda: not any(alive(pid) for pid in run.pids), SECONDS, "both gone")


def test_a_refused_edit_names_what_is_to_be_mended(up: Start) -> None:
    fails_in_one_line(up(FAKE_GATEWAY="refuses"), r"--prompt: no such style", 3)


def test_an_answer_that_is_none(up: Start) -> None:
    fails_in_one_line(up(FAKE_GATEWAY="nonsense"), r"http://.* is not a Retouch gateway: .* 200 OK")


@pytest.mark.parametrize(
    "variable",
    [
        "RETOUCH_SERVER_PORT",
        "RETOUCH_SERVER_METRICS_PORT",
        "RETOUCH_GATEWAY_PORT",
        "RETOUCH_GATEWAY_METRICS_PORT",
    ],
)
def test_a_taken_port_is_one_line_before_anything_starts(
    up: Start, ports: dict[str, str], variable: str
) -> None:
    with socket.create_server(("127.0.0.1", int(ports[variable]))):
        run = up()
        fails_in_one_line(
            run,
            rf"cannot listen on 127\.0\.0\.1:{ports[variable]} "
            rf"\({variable}: Address already in use\); set the variable to a free port",
        )
    assert not (run.folder / "retouch-server").exists()


def test_one_port_for_two(up: Start, ports: dict[str, str]) -> None:
    run = up(RETOUCH_GATEWAY_PORT=ports["RETOUCH_SERVER_PORT"])
    fails_in_one_line(run, r"cannot listen on .*\(RETOUCH_GATEWAY_PORT: .*")


@pytest.mark.parametrize("value", ["", "0", "70000", "http", "-1"])
def test_no_port(up: Start, value: str) -> None:
    run = up(RETOUCH_GATEWAY_PORT=value)
    fails_in_one_line(run, rf"RETOUCH_GATEWAY_PORT is '{value}', which is no port: .*")


def test_no_photo(up: Start) -> None:
    fails_in_one_line(up("--photo nowhere.jpg"), r"cannot read nowhere\.jpg: No such file.*")


def test_what_is_wrong_is_told_before_anything_starts(up: Start, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    run = up("--photo notes.jpg")
    fails_in_one_line(run, r"notes\.jpg is not a PNG, JPEG or WebP image", 3)
    run = up(f"--photo photo.jpg --prompt {os.fsdecode(bytes([255]))}")
    fails_in_one_line(run, r"the prompt, or another word, is not text in UTF-8", 2)
    assert not (tmp_path / "retouch-server").exists()


def test_not_installed(up: Start, programs: Path) -> None:
    (programs / "retouch-gateway").unlink()
    fails_in_one_line(up(), r".*/retouch-gateway is missing: install retouch with .*")
