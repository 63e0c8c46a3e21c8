"""`retouch edit` and `retouch models` as their user runs them, through both real tiers."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e.conftest import BIN, Tiers, environment
from tests.e2e.pictures import difference, left_half, photo, pixels, png
from tests.run_up import wait_for
from tests.terminal import Terminal

ROOT = Path(__file__).parents[2]
RETOUCH = str(BIN / "retouch")
QUICK = ("--size", "128x128", "--steps", "2")
# Far longer than a test waits, of steps that are short, for an edit is cancelled between two.
LONG = ("--size", "512x512", "--steps", "100", "--seed", "7")
SECONDS = 120.0

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(png(photo()))
    return tmp_path


@pytest.fixture
def variables(tiers: Tiers) -> dict[str, str]:
    """What the user of the command has in the environment; the commands are on the path."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return environment(RETOUCH_URL=tiers.url, PATH=path)


@pytest.fixture
def retouch(folder: Path, variables: dict[str, str]) -> Run:
    """`retouch WORDS` in the folder, with other variables where they are given."""

    def run(*words: str, **other: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RETOUCH, *words],
            cwd=folder,
            env={**variables, **other},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
        )

    return run


def test_an_edit(retouch: Run, folder: Path) -> None:
    done = retouch("edit", "photo.png", *QUICK, "--seed", "7", "make it look like night")
    assert (done.returncode, done.stdout) == (0, "photo-edited.png\n"), done.stderr
    assert re.fullmatch(r"pocket made 128x128 in [0-9.]+ s, seed 7\n", done.stderr)
    result = (folder / "photo-edited.png").read_bytes()
    assert pixels(result).mean() < pixels(photo(128, 128)).mean() - 10
    kept = retouch("edit", "photo.png", *QUICK, "x")
    assert kept.returncode == 1
    assert "is there already" in kept.stderr
    assert (folder / "photo-edited.png").read_bytes() == result


def test_a_seed_of_several_makes_its_image_again(retouch: Run, folder: Path) -> None:
    several = retouch("edit", "photo.png", "night", *QUICK, "-n", "3", "-o", "{seed}.png", "--json")
    assert several.returncode == 0, several.stderr
    said = json.loads(several.stdout)
    seeds = [image["seed"] for image in said["images"]]
    assert seeds == list(range(seeds[0], seeds[0] + 3))
    assert said["usage"] == {"input_images": 1, "output_images": 3, "steps": 6}
    again = retouch("edit", "photo.png", "night", *QUICK, "--seed", str(seeds[2]), "-o", "a.png")
    assert again.returncode == 0, again.stderr
    one, other = (folder / f"{seeds[2]}.png").read_bytes(), (folder / "a.png").read_bytes()
    assert difference(one, other) <= 1
    assert difference(one, (folder / f"{seeds[0]}.png").read_bytes()) > 1


def test_a_mask_and_a_format(retouch: Run, folder: Path) -> None:
    (folder / "mask.png").write_bytes(png(left_half()))
    options = ("--size", "256x256", "--steps", "2", "--mask", "mask.png", "-o", "a.webp")
    done = retouch("edit", "photo.png", "invert the colours", *options, "--quality", "100")
    assert done.returncode == 0, done.stderr
    made = (folder / "a.webp").read_bytes()
    assert made[8:12] == b"WEBP"
    changed = np.abs(pixels(made) - pixels(photo()))
    assert changed[:, 140:].mean() < 5, "outside the mask nothing but what WebP loses"
    assert changed[:, :100].mean() > 30


def test_pipes_in_a_shell(folder: Path, variables: dict[str, str]) -> None:
    def shell(script: str) -> bytes:
        words = ["bash", "-o", "pipefail", "-euc", script]
        done = subprocess.run(
            words, cwd=folder, env=variables, capture_output=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    edit = f"retouch edit {' '.join(QUICK)} --seed 7"
    filtered = shell(f"cat photo.png | {edit} - 'make it night' | cat")
    assert filtered.startswith(b"\x89PNG")
    named = shell(f"{edit} <(cat photo.png) --prompt-file <(echo 'make it night') -o - -q")
    assert named == filtered
    assert shell(f"echo 'make it night' | {edit} photo.png --prompt-file - -o -") == filtered
    assert shell(f"{edit} photo.png 'make it night' -o x.jpg -q; cat x.jpg").startswith(b"\xff\xd8")
    gone = f"({edit} photo.png x -o -; echo $? > status) | head -c 1 > /dev/null; cat status"
    assert shell(gone).decode().strip() in ("0", "1"), "a reader that goes is no traceback"
    assert shell("retouch models --json | cat").startswith(b"{")


def test_the_documents_examples(folder: Path, variables: dict[str, str]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    shutil.copy(folder / "photo.png", folder / "photo.jpg")  # told by content
    words = ["bash", "-euc", "\n".join(blocks)]
    subprocess.run(words, cwd=folder, env=variables, check=True, timeout=SECONDS)
    made = sorted(path.name for path in folder.iterdir() if not path.name.startswith("photo."))
    assert [name for name in made if not name.startswith("sunset-")] == [
        "contrast.png",
        "photo-edited.png",
        "sepia.png",
    ]
    assert len(made) == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps: must be 1 to 100, not 0"),
        (["--size", "0x64"], "--size: width must be 1 to 8192, not 0"),
        (["--strength", "much"], "--strength: must be a number"),
        (["--model", "nope"], "--model: model 'nope' is not served here"),
        (["--negative-prompt", "x"], "above 1"),
        (["--mask", "small.png"], "--mask: "),
        (["--quality", "101", "--format", "jpeg"], "--quality: must be 0 to 100, not 101"),
    ],
)
def test_a_fault_names_its_option(retouch: Run, folder: Path, words: list[str], said: str) -> None:
    (folder / "small.png").write_bytes(png(left_half(64, 64)))
    there = sorted(os.listdir(folder))
    done = retouch("edit", "photo.png", "night", *words)
    assert done.returncode == 3
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(folder)) == there


def test_a_second_photo_that_the_model_does_not_take(retouch: Run, folder: Path) -> None:
    shutil.copy(folder / "photo.png", folder / "other.png")
    done = retouch("edit", "photo.png", "other.png", "night")
    assert done.returncode == 3
    assert "other.png: model pocket takes one image" in done.stderr


def test_a_photo_that_is_too_large(retouch: Run, folder: Path) -> None:
    with (folder / "photo.png").open("ab") as file:
        file.truncate(40 * 2**20)
    done = retouch("edit", "photo.png", "night")
    assert done.returncode == 3
    assert "photo.png has 41943040 bytes; at most 4194304 are allowed" in done.stderr


def test_models(retouch: Run) -> None:
    done = retouch("models")
    assert done.returncode == 0, done.stderr
    assert re.search(r"pocket +1 +mask, strength", done.stdout)
    one = retouch("models", "pocket")
    assert one.returncode == 0, one.stderr
    assert "--mask" in one.stdout
    assert retouch("models", "nope").returncode == 3


@contextlib.contextmanager
def gateway_with_keys(tiers: Tiers, folder: Path) -> Iterator[str]:
    """The address of a second gateway, in front of the same server, that wants a key from keys.toml."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    command = [str(BIN / "retouch-gateway"), f"--port={port}", "--metrics-port=0"]
    command += [
        "--keys=keys.toml",
        f"--upstream=127.0.0.1:{tiers.ports['RETOUCH_SERVER_PORT']}",
        "--store=store",
    ]
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz", trust_env=False).is_success
        return False

    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
    try:
        wait_for(ready, 60, "the gateway ready")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_keys(retouch: Run, tiers: Tiers, folder: Path) -> None:
    made = retouch("key", "new", "ada", "--file", "keys.toml")
    (folder / "key").write_text(made.stdout)
    edit = ("edit", "photo.png", "night", *QUICK, "-f")
    with gateway_with_keys(tiers, folder) as url:
        without = retouch(*edit, RETOUCH_URL=url)
        assert without.returncode == 4
        assert "wants an API key: RETOUCH_API_KEY" in without.stderr
        wrong = retouch(*edit, RETOUCH_URL=url, RETOUCH_API_KEY="rt_wrong")
        assert wrong.returncode == 4
        assert "does not know this API key" in wrong.stderr
        assert retouch(*edit, "--url", url, "--key-file", "key").returncode == 0
        key = made.stdout.strip()
        assert retouch(*edit, "--url", f"{url}/v1", RETOUCH_API_KEY=key).returncode == 0
        assert retouch("models", RETOUCH_URL=url).returncode == 4
        assert retouch("models", RETOUCH_URL=url, RETOUCH_API_KEY=key).returncode == 0
    down = retouch(*edit, RETOUCH_URL=url)
    assert down.returncode == 6
    assert f"cannot reach {url}: Connection refused. Is it running?" in down.stderr


def idle(tiers: Tiers) -> bool:
    return tiers.metric("server", "retouch_server_running") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_frees_the_slot(
    tiers: Tiers, folder: Path, variables: dict[str, str], number: signal.Signals
) -> None:
    wait_for(lambda: idle(tiers), 60, "idle")
    cancelled = tiers.metric("server", "retouch_server_edits_total", outcome="cancelled")
    command = [RETOUCH, "edit", "photo.png", "night", *LONG]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=pipe, stderr=pipe
    ) as process:
        wait_for(lambda: not idle(tiers), 60, "the edit running")
        process.send_signal(number)
        said = process.communicate(timeout=20)
    assert process.returncode == (-number if number == signal.SIGINT else 128 + number)
    assert said == ("", "Cancelled\n" if number == signal.SIGINT else "")
    wait_for(lambda: idle(tiers), 30, "the slot freed")
    assert tiers.metric("server", "retouch_server_edits_total", outcome="cancelled") > cancelled
    assert os.listdir(folder) == ["photo.png"]


SHOW_CURSOR = "\x1b[?25h"


def test_a_terminal_shows_a_bar_for_each_image(folder: Path, variables: dict[str, str]) -> None:
    command = [RETOUCH, "edit", "photo.png", "night", "-n", "2", "--steps", "3"]
    run = Terminal(command, folder, variables)
    assert run.status() == 0, run.output
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", run.output)
    assert "Next in the queue" in text
    for image in (1, 2):
        assert re.search(rf"Image {image} of 2 \S+ +step [123] of 3 0:00:\d\d", text)
    assert text.endswith("photo-edited-1.png\r\nphoto-edited-2.png\r\n")
    assert run.output.rindex(SHOW_CURSOR) > run.output.rindex("\x1b[?25l")


def test_ctrl_c_on_a_terminal(tiers: Tiers, folder: Path, variables: dict[str, str]) -> None:
    run = Terminal([RETOUCH, "edit", "photo.png", "night", *LONG], folder, variables)
    run.until(r"step \d+ of 100")
    os.write(run.descriptor, b"\x03")
    assert run.status() == -signal.SIGINT, "which is 130 to a shell"
    assert run.output.endswith("Cancelled\r\n")
    assert SHOW_CURSOR in run.output
    wait_for(lambda: idle(tiers), 30, "the slot freed")
    assert os.listdir(folder) == ["photo.png"]


def test_a_picture_does_not_go_to_a_terminal(folder: Path, variables: dict[str, str]) -> None:
    run = Terminal([RETOUCH, "edit", "photo.png", "night", "-o", "-"], folder, variables)
    assert run.status() == 2
    assert "standard output is the terminal" in run.output
    run = Terminal([RETOUCH, "edit", "-", "night", "-o", "x.png"], folder, variables)
    assert run.status() == 2
    assert "standard input, which is the terminal" in run.output
