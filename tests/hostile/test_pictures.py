"""Pictures from strangers: a picture or a refusal, in bounded time and memory, and no lines of theirs in the log."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from retouch_server import images
from retouch_server.errors import InvalidRequest
from tests.hostile import pictures
from tests.hostile.decoding import Mutants, Taken
from tests.hostile.pictures import BOMBS, BROKEN, ENDLESS, LARGE, NO_PICTURE, POLYGLOTS, small
from tests.hostile.pieces import black, encoded
from tests.hostile.report import LONG, Report

LIMITS = images.InputLimits()
# Bytes that a pixel takes at the most, whatever its depth and profile; of WebP, and of the others; what else there is.
WEBP_BYTES, BYTES, BESIDE_MIB = 17, 12, 32
HONEST = "an honest RGB picture of 50 megapixels"
# For 52 of them, on the slowest machine; each is held to CPU time of its own.
SECONDS = 1200
pytestmark = pytest.mark.timeout(SECONDS + 300)


def decoded_apart(*arguments: str) -> Iterator[str]:
    """What `tests.hostile.decoding` says, which must not crash."""
    command = [sys.executable, "-m", "tests.hostile.decoding", *arguments]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr
    return iter(done.stdout.splitlines())


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Mapping[str, Taken]:
    """By name, what each bomb and an honest picture took, in one process."""
    folder = tmp_path_factory.mktemp("bombs")
    made: dict[str, pictures.Maker] = {HONEST: lambda: black(pictures.SIDE, pictures.SIDE)} | BOMBS
    files = [folder / str(number) for number in range(len(made))]
    for file, make in zip(files, made.values(), strict=True):
        data = make()
        assert len(data) <= pictures.MOST
        file.write_bytes(data)
    # The honest one first and last: what it takes is what the others are held to.
    *lines, last = decoded_apart(*map(str, files), str(files[0]))
    found = {name: Taken(**json.loads(line)) for name, line in zip(made, lines, strict=True)}
    found[HONEST] = min(found[HONEST], Taken(**json.loads(last)), key=lambda each: each.seconds)
    for file in files:
        file.unlink()
    for key, of in (("seconds", "slowest"), ("mebibytes", "largest")):
        name = max(BOMBS, key=lambda each: getattr(found[each], key))
        report.note("bombs", **{of: name, key: round(getattr(found[name], key), 2)})
    report.note("bombs", count=len(BOMBS), honest_seconds=round(found[HONEST].seconds, 2))
    return found


@pytest.mark.parametrize("name", LARGE)
def test_a_large_picture_takes_bounded_time_and_memory(
    taken: Mapping[str, Taken], name: str
) -> None:
    its = taken[name]
    assert its.seconds < 6 * taken[HONEST].seconds
    most = WEBP_BYTES if "WebP" in name else BYTES
    assert its.mebibytes < most * LIMITS.max_pixels / 2**20 + BESIDE_MIB
    assert not its.warned


@pytest.mark.parametrize("name", ENDLESS)
def test_a_small_picture_takes_no_more_than_an_honest_one(
    taken: Mapping[str, Taken], name: str
) -> None:
    its = taken[name]
    assert its.seconds < taken[HONEST].seconds
    assert its.mebibytes < BESIDE_MIB
    assert not its.warned


def outcome(data: bytes) -> str:
    """The refusal of `data`, or else nothing."""
    try:
        images.decode(data, "images[0]", LIMITS)
    except InvalidRequest as refused:
        (violation,) = refused.violations
        assert violation.field == "images[0]"
        assert violation.description.isprintable()
        assert len(violation.description) < 200
        return violation.description
    return ""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_the_callers_mistake(name: str, recwarn: pytest.WarningsRecorder) -> None:
    outcome(BROKEN[name]())
    assert not recwarn.list


@pytest.mark.parametrize("name", NO_PICTURE)
def test_what_is_no_picture_is_refused_whatever_it_is_called(name: str) -> None:
    assert outcome(NO_PICTURE[name]()) == "is not a PNG, JPEG or WebP image"


@pytest.mark.parametrize("name", POLYGLOTS)
def test_of_two_things_at_once_the_picture_alone_is_left(name: str) -> None:
    image = images.decode(POLYGLOTS[name](), "images[0]", LIMITS)
    for format in images.FORMATS:
        out = io.BytesIO()
        image.save(out, format)
        for other in (b"<script", b"PK\x03\x04", b"%PDF", b"alert"):
            assert other not in out.getvalue()


@pytest.mark.parametrize("format", images.FORMATS)
def test_cut_anywhere(format: str) -> None:
    whole = small(format)
    told = [outcome(whole[:end]) for end in range(len(whole))]
    assert not outcome(whole)
    assert all(told[: len(whole) - 32])  # its last bytes may be a checksum, that nobody misses


def originals() -> Iterator[bytes]:
    """Of each kind one, small."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield small("PNG", mode)
    for mode in ("L", "RGB", "CMYK"):
        yield small("JPEG", mode)
    image = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield encoded(image, "JPEG", progressive=True)
    yield encoded(image, "JPEG", exif=exif, icc_profile=profile)
    yield encoded(image, "PNG", exif=exif, icc_profile=profile)
    yield encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)])
    yield encoded(image.convert("RGBA"), "WEBP", lossless=True)
    yield encoded(image.convert("RGBA"), "WEBP", exif=exif, icc_profile=profile)
    yield encoded(image, "MPO", save_all=True, append_images=[image.rotate(90)])


def test_changed_at_random(tmp_path: Path, taken: Mapping[str, Taken], report: Report) -> None:
    files = []
    for number, data in enumerate(originals()):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(data)
    count = 200_000 if LONG else 8000
    (line,) = decoded_apart("mutants", "7", str(count), *map(str, files))
    found = Mutants(**json.loads(line))
    report.note("mutants", count=count, **vars(found))
    assert found.decoded > count / 50
    assert found.refused > count / 5
    assert found.slowest < taken[HONEST].seconds
    assert found.mebibytes < 16
    assert found.warned < 3
