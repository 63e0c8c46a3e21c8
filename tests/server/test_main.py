"""The process: exit codes and signals, with the real command."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from tests.server.conftest import Folder
from tests.server.test_equality import picture

COMMAND = Path(sys.executable).parent / "retouch-server"


class Process:
    """`retouch-server` on free ports, its log read as it comes."""

    def __init__(self, log: Path, models: str) -> None:
        settings = {
            "PORT": "0",
            "METRICS_PORT": "0",
            "MODELS": models,
            "DEVICE": "cpu",
            "LOG_FORMAT": "text",
        }
        environment = os.environ | {
            f"RETOUCH_SERVER_{name}": value for name, value in settings.items()
        }
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([COMMAND], stdout=file, stderr=file, env=environment)

    def says(self, words: str, seconds: float = 60) -> str:
        """The log, once it holds `words`."""
        end = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return self.log.read_text()

    def target(self) -> str:
        log = self.says("listening on ")
        return log.partition("listening on ")[2].split()[0]

    def signal(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ends(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def process(tmp_path: Path, tiny_folder: Folder) -> Iterator[Process]:
    started = Process(tmp_path / "log", f"instruct={tiny_folder('instruct')}")
    yield started
    started.process.kill()
    started.process.wait()


def long_edit() -> pb.EditRequest:
    photo = io.BytesIO()
    picture(0).save(photo, "PNG")
    size = pb.Size(width=256, height=256)
    return pb.EditRequest(images=[photo.getvalue()], prompt="p", num_inference_steps=100, size=size)


def test_a_signal_while_loading_ends_it_at_once(process: Process) -> None:
    process.says("loading model")
    process.signal()
    assert process.ends(5) == 0
    assert "serving instruct" not in process.log.read_text()


def test_an_accepted_edit_is_finished_before_the_end(process: Process) -> None:
    process.says("serving instruct")
    request = long_edit()
    request.num_inference_steps = 20
    with grpc.insecure_channel(process.target()) as channel:
        call = ImageEditStub(channel).StreamEdit(request)
        assert next(call).WhichOneof("event") == "queued"
        process.signal()
        assert [event.WhichOneof("event") for event in call][-1] == "result"
    assert process.ends() == 0


def test_a_second_signal_ends_it_at_once(process: Process) -> None:
    process.says("serving instruct")
    with grpc.insecure_channel(process.target()) as channel:
        call = ImageEditStub(channel).StreamEdit(long_edit())
        assert next(call).WhichOneof("event") == "queued"
        process.signal()
        process.says("stopping")
        process.signal()
        assert process.ends(3) == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    process = Process(tmp_path / "log", "mine=/nowhere/model")
    assert process.ends() == 1
    assert (
        process.log.read_text().splitlines()[-1] == "model mine: there is no folder /nowhere/model"
    )
    assert "Traceback" not in process.log.read_text()


def test_mistakes_in_the_settings_are_told_without_loading_anything(tmp_path: Path) -> None:
    started = time.monotonic()
    process = Process(tmp_path / "log", "nonsense")
    assert process.ends() == 2
    assert process.log.read_text().startswith("RETOUCH_SERVER_MODELS: 'nonsense'")
    assert time.monotonic() - started < 5
