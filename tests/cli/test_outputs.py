"""Names, formats, and files that are there whole or not at all."""

import argparse
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from retouch_cli import outputs
from retouch_cli.errors import Failure, WrongCommandLine
from retouch_cli.outputs import Output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(output: str | None = None, photo: str = "dir/photo.jpg", **options: Any) -> Output:
    given = {"format": None, "quality": None, "n": 1, "force": False} | options
    return outputs.chosen(argparse.Namespace(output=output, **given), photo)


@pytest.mark.parametrize(
    ("output", "options", "name", "format_"),
    [
        (None, {}, "photo-edited.png", "png"),
        (None, {"format": "jpeg"}, "photo-edited.jpg", "jpeg"),
        (None, {"photo": "-"}, "-", "png"),
        ("out/", {}, "out/photo-edited.png", "png"),
        ("here", {"format": "webp"}, "here/photo-edited.webp", "webp"),
        ("here", {"photo": "-"}, "here/stdin-edited.png", "png"),
        ("-", {}, "-", "png"),
        ("/dev/stdout", {"format": "jpeg"}, "-", "jpeg"),
        ("-", {"format": "webp", "quality": "5"}, "-", "webp"),
        ("a.JPG", {}, "a.JPG", "jpeg"),
        ("a.jpeg", {"format": "jpeg"}, "a.jpeg", "jpeg"),
        ("a.webp", {"quality": "5"}, "a.webp", "webp"),
        ("a", {}, "a", "png"),
        ("a.image", {"format": "webp"}, "a.image", "webp"),
    ],
)
def test_the_name_and_the_format(
    output: str | None, options: dict[str, Any], name: str, format_: str
) -> None:
    Path("here").mkdir()
    found = chosen(output, **options)
    assert (found.name, found.format) == (name, format_)


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("a.jpg", {"format": "png"}, "contradict"),
        ("a.png", {"format": "webp"}, "contradict"),
        ("a.gif", {}, "--format says which"),
        ("a.png", {"quality": "5"}, "--quality"),
        (None, {"quality": "5"}, "--quality"),
    ],
)
def test_contradictions(output: str | None, options: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongCommandLine, match=said):
        chosen(output, **options)


@pytest.mark.parametrize(
    ("name", "seeds", "paths"),
    [
        ("a.png", [7], ["a.png"]),
        ("a.png", [7, 8], ["a-1.png", "a-2.png"]),
        ("d.e/a", [7, 8], ["d.e/a-1", "d.e/a-2"]),
        ("a-{seed}.png", [7], ["a-7.png"]),
        ("{seed}-{index}.png", [2**64 - 1, 0], ["18446744073709551615-1.png", "0-2.png"]),
        ("{other}{}.png", [7], ["{other}{}.png"]),
        ("a.png", list(range(10)), [f"a-{i}.png" for i in range(1, 11)]),
    ],
)
def test_a_name_for_each_image(name: str, seeds: list[int], paths: list[str]) -> None:
    found = Output(name, len(seeds), "png", force=False)
    assert [str(path) for path in found.paths(seeds)] == paths
    if "{seed}" not in name:
        assert found.paths(None) == found.paths(seeds)


@pytest.mark.parametrize("name", ["a.png", "a-{index}.png", "a-{seed}.png"])
def test_what_is_there_is_kept(name: str) -> None:
    output = Output(name, 2, "png", force=False)
    output.check(7)
    taken = output.paths([7, 8])[1]
    taken.write_text("mine")
    with pytest.raises(Failure, match=r"is there already: --force replaces it"):
        output.check(7)
    with pytest.raises(Failure, match=r"is there already.* \(seed 8\)"):
        output.save([b"one", b"two"], [7, 8])
    assert taken.read_text() == "mine"
    forced = Output(name, 2, "png", force=True)
    forced.check(7)
    assert forced.save([b"one", b"two"], [7, 8]) == [str(path) for path in output.paths([7, 8])]
    assert taken.read_bytes() == b"two"


def test_what_appears_while_it_is_written_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def slow(descriptor: int) -> None:
        Path("a.png").write_text("another's")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(Failure, match="File exists"):
        Output("a.png", 1, "png", force=False).save([b"x"], [7])
    assert Path("a.png").read_text() == "another's"
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_whole(
    monkeypatch: pytest.MonkeyPatch, force: bool, raised: BaseException
) -> None:
    if force:
        Path("a.png").write_text("before")
    there = os.listdir()

    def full(descriptor: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", full)
    expected = Failure if isinstance(raised, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        Output("a.png", 1, "png", force).save([b"x" * 100], [7])
    assert os.listdir() == there
    assert not force or Path("a.png").read_text() == "before"


def test_a_new_file_has_the_mode_that_files_have() -> None:
    Output("a.png", 1, "png", force=False).save([b"x"], [7])
    Path("plain").touch()
    assert Path("a.png").stat().st_mode == Path("plain").stat().st_mode


def test_a_seed_begins_again_after_the_last_one() -> None:
    Path("0.png").touch()
    with pytest.raises(Failure, match=r"0\.png is there already"):
        Output("{seed}.png", 2, "png", force=False).check(2**64 - 1)


def test_what_is_replaced_keeps_its_mode() -> None:
    Path("a.png").touch(0o600)
    Output("a.png", 1, "png", force=True).save([b"x"], [7])
    assert stat.S_IMODE(Path("a.png").stat().st_mode) == 0o600
    assert Path("a.png").read_bytes() == b"x"


def test_a_link_stays_one() -> None:
    Path("real.png").write_text("before")
    Path("link.png").symlink_to("real.png")
    Output("link.png", 1, "png", force=True).save([b"x"], [7])
    assert Path("link.png").is_symlink()
    assert Path("real.png").read_bytes() == b"x"


def test_a_device_is_written_to_and_stays_one() -> None:
    os.mkfifo("pipe.png")
    reader = os.open("pipe.png", os.O_RDONLY | os.O_NONBLOCK)
    try:
        output = Output("pipe.png", 1, "png", force=False)
        output.check(None)
        output.save([b"x"], [7])
        assert os.read(reader, 9) == b"x"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(Path("pipe.png").stat().st_mode)


@pytest.mark.parametrize(
    "name", ["nowhere/a.png", "taken/a.png", "x" * 300, "folder.png", "circle.png"]
)
def test_what_cannot_be_written_is_told_before(name: str) -> None:
    Path("circle.png").symlink_to("circle.png")
    Path("taken").touch()
    Path("folder.png").mkdir()
    with pytest.raises(Failure, match="cannot write"):
        Output(name, 1, "png", force=True).check(None)


def test_a_name_that_wants_a_seed_which_is_not_drawn_yet() -> None:
    Output("{seed}.png", 2, "png", force=False).check(None)
    with pytest.raises(Failure, match="there is no folder"):
        Output("nowhere/{seed}.png", 2, "png", force=False).check(None)
