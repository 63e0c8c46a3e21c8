"""What of a model's card is shown as instructions to try, and what a hostile card cannot do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retouch_server import card


def write(folder: Path, front_matter: str, end: str = "---\n\n# A model\n") -> Path:
    (folder / "README.md").write_text(f"---\n{front_matter}\n{end}", encoding="utf-8")
    return folder


def listed(folder: Path, *entries: str) -> tuple[str, ...]:
    """What a card shows whose widget has these entries, as YAML."""
    return card.examples(write(folder, "widget:\n" + "\n".join(f"- {each}" for each in entries)))


def test_the_texts_of_a_cards_widget(tmp_path: Path) -> None:
    write(
        tmp_path,
        """license: apache-2.0
tags: [image-to-image]
widget:
- text: "make it night: dark, with stars"
  example_title: Night
  output: {url: images/night.png}
- src: photo.jpg
  prompt: turn it into a pencil sketch
- text: >-
    paint it
    in oil
- text: mach’s wärmer 暖かく""",
    )
    assert card.examples(tmp_path) == (
        "make it night: dark, with stars",
        "turn it into a pencil sketch",
        "paint it in oil",
        "mach’s wärmer 暖かく",
    )


def test_what_is_not_an_instruction_is_passed_over(tmp_path: Path) -> None:
    assert listed(
        tmp_path,
        "text: 7",
        "text: yes",
        "text: 2026-01-01",
        "text: [a, b]",
        "text: !!python/object/apply:os.system ['true']",
        "text:",
        "text: '-'",  # what forms of the hub leave there
        "text: ''",
        "src: cat.png",
        "sepia",
        "[text]",
        "? [text]\n  : a",
        "text: make it sepia",
        f"text: {'a' * (card.LONGEST + 1)}",
        f"text: {'a' * card.LONGEST}",
        "text: '  make it   sepia '",
    ) == ("make it sepia", "a" * card.LONGEST)


def test_no_more_than_the_contract_lets_through(tmp_path: Path) -> None:
    shown = listed(tmp_path, *(f"text: make it {i}" for i in range(card.MOST + 1)))
    assert shown == tuple(f"make it {i}" for i in range(card.MOST))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m red\x00 sky", "a[31m red sky"),
        ("over\ntwo\r\nlines\tand\u2028more", "over two lines and more"),
        ("half a pair \ud83d here", "half a pair here"),
        ("\u202eright to left", "right to left"),
        ("!?", None),
        ("\x00\x01", None),
    ],
)
def test_an_instruction_is_one_printable_line(text: str, shown: str | None) -> None:
    assert card.instruction(text) == shown
    if shown:
        shown.encode()  # what protobuf asks of a string


def test_escapes_that_yaml_knows_are_cleaned_too(tmp_path: Path) -> None:
    assert listed(tmp_path, r'text: "a \e[1m\0 dark\ud800 sky"') == ("a [1m dark sky",)


@pytest.mark.parametrize("start", ["---\n", "\ufeff---\n", "\n---  \n", "---\r\n"])
def test_how_front_matter_may_begin(tmp_path: Path, start: str) -> None:
    text = f"{start}widget:\n- text: make it sepia\n---\n- text: no\n"
    (tmp_path / "README.md").write_bytes(text.encode())
    assert card.examples(tmp_path) == ("make it sepia",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# A model\n\nwidget:\n- text: sepia\n",
        b"---\nwidget:\n- text: sepia\n",
        b"---\nwidget:\n- text: sepia\n" + b"#" * 64 * 1024 + b"\n---\n",
        b"---\n---\n",
        b"---\n7\n---\n",
        b"---\n- widget\n---\n",
        b"---\nwidget: sepia\n---\n",
        b"---\nwidget: {text: sepia}\n---\n",
    ],
)
def test_a_card_without_examples(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "README.md").write_bytes(content)
    assert card.examples(tmp_path) == ()
    assert not caplog.records


@pytest.mark.parametrize(
    "front_matter",
    [
        "widget: [",
        "a: *b",
        "a: 1\n--- {b: 2}",
        'a: "\\UFFFFFFFF"',
        'a: "\\U00110000"',
        f"%YAML {'9' * 5000}.1",
        "widget: " + "[" * 60_000,
        "\x00",
    ],
)
def test_a_broken_card_is_warned_of(
    tmp_path: Path, front_matter: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert card.examples(write(tmp_path, front_matter)) == ()
    (record,) = caplog.records
    message = record.getMessage()
    assert str(tmp_path / "README.md") in message
    assert len(message.splitlines()) == 1


def test_bytes_that_are_no_utf8_spoil_only_themselves(tmp_path: Path) -> None:
    text = b"---\nlicense: \xff\xfe\nwidget:\n- text: make it sepia\n---\n"
    (tmp_path / "README.md").write_bytes(text)
    assert card.examples(tmp_path) == ("make it sepia",)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    assert card.examples(tmp_path) == ()
    os.mkfifo(tmp_path / "README.md")  # whose reader would wait for ever
    assert card.examples(tmp_path) == ()
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert card.examples(tmp_path) == ()
    assert card.examples(tmp_path / "nowhere") == ()


def test_a_card_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    write(tmp_path, "widget: [{text: make it sepia}]")
    monkeypatch.setattr(Path, "open", refuse)
    assert card.examples(tmp_path) == ()
    assert "Permission denied" in caplog.text


def test_aliases_are_not_followed_without_end(tmp_path: Path) -> None:
    """A card of 64 KiB could name one large entry thousands of times."""
    for many, shown in ((9 * card.MOST, ("make it sepia",)), (11 * card.MOST, ())):
        widget = "widget: [" + "*a, " * many + "{text: make it sepia}]"
        assert card.examples(write(tmp_path, "a: &a {src: a.png}\n" + widget)) == shown
