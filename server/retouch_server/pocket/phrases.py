"""The instructions `pocket` is trained on: templates x wordings x subjects x polite forms, and several in one.

The words are in `grammar.toml`. An edit's wordings come in four shapes: `do`, whole imperatives;
`be`, what "make it ..." may end in; `as`, what a photo may be turned into; `add`, what may be added.
"""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from retouch_server.pocket.edits import NAMES, PLAINLY, RIVALS, SLIGHTLY, STRONGLY, TINTS

SHAPES = {"do": "", "be": "make", "as": "turn", "add": "add"}  # shape -> its templates
SPELLINGS = (
    ("colour", "color"),
    ("grey", "gray"),
    ("posteris", "posteriz"),
    ("pixelat", "pixellat"),
    ("black and white", "black & white"),
    ("photograph", "photo"),
)


@dataclass(frozen=True)
class Phrase:
    """An instruction, and what it asks for: edit -> how much of it, as in `edits.apply`; {} for nothing."""

    text: str
    amounts: dict[str, float] = field(default_factory=dict)


@dataclass
class _Part:
    """One edit's words, before they are put in a sentence."""

    shape: str
    words: str
    amount: float
    text: str


def together(rng: random.Random, weights: dict[str, float] | None = None) -> list[str]:
    """One to three edits that go together; `weights`: how often each, 1 where it is not in there."""
    heavy = weights or {}
    rows = [[heavy.get(name, 1.0) for name in row] for row in RIVALS]
    count = rng.choices((1, 2, 3), (60, 30, 10))[0]
    names: list[str] = []
    while len(names) < count:
        i = rng.choices(range(len(RIVALS)), [sum(row) for row in rows])[0]
        if not any(name in RIVALS[i] for name in names):
            names.append(rng.choices(RIVALS[i], rows[i])[0])
    return names


@cache
def _grammar() -> dict[str, Any]:
    """grammar.toml, with its `|`-separated texts as lists."""

    def split(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: split(item) for key, item in value.items()}
        if isinstance(value, str):
            return [" ".join(item.split()) for item in value.split("|")]
        return value

    text = resources.files("retouch_server.pocket").joinpath("grammar.toml").read_text("utf-8")
    grammar: dict[str, Any] = split(tomllib.loads(text))
    return grammar


@cache
def _words(edit: str) -> dict[str, Any]:
    """The entry of an edit; a tint's is every wording of [tint] with every name of the colour."""
    grammar = _grammar()
    if edit in grammar["edits"]:
        entry: dict[str, Any] = grammar["edits"][edit]
        return entry
    names = grammar["colours"][edit]
    return {
        key: [text.replace("C", name) for name in names for text in value]
        if isinstance(value, list)
        else value
        for key, value in grammar["tint"].items()
    }


@cache
def own_words() -> frozenset[str]:
    """Every word of the edits' wordings."""
    texts = (
        text
        for edit in NAMES
        for value in _words(edit).values()
        if isinstance(value, list)
        for text in value
    )
    return frozenset(word for text in texts for word in text.replace("-", " ").split())


def draw(edits: Sequence[str], rng: random.Random, strange: Sequence[str] = ()) -> Phrase:
    """A random instruction for all of `edits`, or one for no edit at all when there are none.

    `strange` are words of any kind, to stand in it without meaning anything.
    """
    if not edits:
        return Phrase(_dress(_off_topic(rng, strange), rng, strange))
    parts = [_part(edit, rng) for edit in edits]
    amounts = {edit: part.amount for edit, part in zip(edits, parts, strict=True)}
    return Phrase(_dress(_joined(parts, rng), rng, strange), amounts)


def _part(edit: str, rng: random.Random) -> _Part:
    words, templates = _words(edit), _grammar()["templates"]
    # A shape is drawn as often as it has wordings, up to ten, so that rich shapes lead.
    shapes = [shape for shape in SHAPES if shape in words]
    shape = rng.choices(shapes, [min(10, len(words[s])) for s in shapes])[0]
    part = _Part(shape, rng.choice(words[shape]), PLAINLY, "")
    if shape in ("as", "add"):
        part.words = _article(part.words, rng)
    if words.get("degrees") and rng.random() < 0.35:
        _degree(part, rng)
    part.text = _sentence(part, rng)
    if "too" in words and rng.random() < 0.2:
        complaint = rng.choice(templates["complain"]).replace("{c}", rng.choice(words["too"]))
        part.amount = part.amount if "{text}" in complaint else PLAINLY
        part.text = complaint.replace("{text}", part.text)
        part.shape = "do"
    return part


def _sentence(part: _Part, rng: random.Random) -> str:
    if part.shape == "do":
        return part.words
    template: str = rng.choice(_grammar()["templates"][SHAPES[part.shape]])
    return template.replace("{b}", part.words).replace("{a}", part.words)


def _joined(parts: list[_Part], rng: random.Random) -> str:
    """One sentence of all: "make it b and c", "add a and b", "turn it into a with b", or one after the other."""
    if len(parts) == 1:
        return parts[0].text
    templates, shapes = _grammar()["templates"], {part.shape for part in parts}
    if len(shapes) == 1 and shapes <= {"be", "add", "as"} and rng.random() < 0.7:
        words = [part.words for part in parts]
        listed = ", ".join(words[:-1]) + rng.choice((" and ", " and ", ", ", " plus ")) + words[-1]
        return _sentence(_Part(parts[0].shape, listed, 0, ""), rng)
    if parts[-1].shape == "add" and rng.random() < 0.4:
        link = rng.choice((" with ", " with ", " plus ", " and ", " under ", " in "))
        return parts[0].text + link + " and ".join(part.words for part in parts[1:])
    text = parts[0].text
    for part in parts[1:]:
        text = rng.choice(templates["joints"]).replace("{x}", text).replace("{y}", part.text)
    return text


def _article(noun: str, rng: random.Random) -> str:
    """Nouns are written with their article; sometimes people leave it out."""
    article, _, rest = noun.partition(" ")
    return rest if article in ("a", "an", "the", "some") and rng.random() < 0.15 else noun


def _degree(part: _Part, rng: random.Random) -> None:
    """Adds "slightly" or "very" to an adjective, or to the phrase."""
    forms, slight = _grammar()["forms"], rng.random() < 0.5
    part.amount = SLIGHTLY if slight else STRONGLY
    words = part.words.split(" ")
    if part.shape == "be" and rng.random() < 0.7:
        at = 1 if words[0] in ("look", "be") else 0
        words.insert(at, rng.choice(forms["slightly" if slight else "strongly"]))
        part.words = " ".join(words)
        return
    if part.shape == "add" and rng.random() < 0.7:
        if words[0] in ("a", "an"):
            size = rng.choice(forms["small" if slight else "big"])
            part.words = " ".join([words[0].replace("an", "a"), size, *words[1:]])
        else:
            part.words = f"{rng.choice(forms['some' if slight else 'lots'])} {part.words}"
        return
    word = rng.choice(forms["slightly" if slight else "very_much"])
    part.words = f"{word} {part.words}" if rng.random() < 0.2 else f"{part.words} {word}"


def _dress(text: str, rng: random.Random, strange: Sequence[str]) -> str:
    """Subject, polite forms, asides, spelling variants, and now and then a slip of the fingers."""
    forms = _grammar()["forms"]
    text = text.replace("{s}", rng.choice(forms["subjects"]))
    if rng.random() < 0.5:
        text = f"{rng.choice(forms['before'])} {text}"
    if rng.random() < 0.5:
        after = rng.choice(forms["after"])
        text = f"{text} {after}" if after[0].isalpha() else text + after
    if rng.random() < 0.3:
        text = text.replace("the colours", rng.choice(forms["the_colours"]))
    if rng.random() < 0.12:
        aside, comma = rng.choice(forms["asides"]), rng.choice((" ", ", "))
        text = aside + comma + text if rng.random() < 0.4 else text + comma + aside
    for british, other in SPELLINGS:
        if rng.random() < 0.5:
            text = text.replace(british, other)
    return _slip(text, rng, strange)


def _slip(text: str, rng: random.Random, strange: Sequence[str]) -> str:
    words = text.split()
    if len(words) > 3 and rng.random() < 0.05:
        words.pop(rng.randrange(2))  # the first words carry the least
    for _ in range(3):
        if strange and rng.random() < 0.15:  # a word it does not know must not throw it off
            words.insert(rng.randint(0, len(words)), rng.choice(strange))
    text = " ".join(words)
    if len(text) > 6 and rng.random() < 0.04:
        at = rng.randrange(1, len(text) - 1)
        text = text[:at] + text[at + 1 :]
    return text


def _off_topic(rng: random.Random, strange: Sequence[str]) -> str:
    grammar, words = _grammar(), _grammar()["off_topic"]
    text = str(rng.choice(words["keep" if rng.random() < 0.2 else "ask"]))
    while "{word}" in text:
        text = text.replace("{word}", rng.choice(strange or words["things"]), 1)
    colour = rng.choice(grammar["colours"][rng.choice(list(TINTS))])

    def thing() -> str:
        return str(rng.choice(strange if strange and rng.random() < 0.4 else words["things"]))

    slots = {
        "{do}": _part(rng.choice(NAMES), rng).text,
        "{thing}": thing(),
        "{other}": thing(),
        "{place}": rng.choice(words["places"]),
        "{colour}": colour,
    }
    for slot, value in slots.items():
        text = text.replace(slot, value)
    return text
