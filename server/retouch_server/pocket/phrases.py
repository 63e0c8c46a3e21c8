"""The instructions `pocket` is trained on: templates x wordings x subjects x polite forms.

The words are in `grammar.toml`. An edit's wordings come in four shapes: `do`, whole imperatives;
`be`, what "make it ..." may end in; `as`, what a photo may be turned into; `add`, what may be added.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

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
    """An instruction. `edit`: a name in `edits.EDITS` or "" for none; `amount`: how far, 0..1."""

    text: str
    edit: str
    amount: float = 1.0


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


def draw(edit: str, rng: random.Random) -> Phrase:
    """A random instruction for `edit`, or one for no edit at all when it is ""."""
    if not edit:
        return Phrase(_dress(_off_topic(rng), rng), "")
    words, templates = _words(edit), _grammar()["templates"]
    # A shape is drawn as often as it has wordings, up to ten, so that rich shapes lead.
    shapes = [shape for shape in SHAPES if shape in words]
    shape = rng.choices(shapes, [min(10, len(words[s])) for s in shapes])[0]
    text, amount = rng.choice(words[shape]), 1.0
    if shape == "be":
        text = rng.choice(templates["make"]).replace("{b}", text)
    elif shape != "do":
        text = rng.choice(templates[SHAPES[shape]]).replace("{a}", _article(text, rng))
    if words.get("degrees") and rng.random() < 0.25:
        text, amount = _degree(text, shape, rng)
    if "too" in words and rng.random() < 0.2:
        complaint = rng.choice(templates["complain"]).replace("{c}", rng.choice(words["too"]))
        amount = amount if "{text}" in complaint else 1.0
        text = complaint.replace("{text}", text)
    return Phrase(_dress(text, rng), edit, amount)


def _article(noun: str, rng: random.Random) -> str:
    """Nouns are written with their article; sometimes people leave it out."""
    article, _, rest = noun.partition(" ")
    return rest if article in ("a", "an", "the", "some") and rng.random() < 0.15 else noun


def _degree(text: str, shape: str, rng: random.Random) -> tuple[str, float]:
    """Adds "slightly" (half the way) or "very" (all of it) to an adjective, or to the phrase."""
    forms, slight = _grammar()["forms"], rng.random() < 0.6
    amount = 0.5 if slight else 1.0
    head, _, tail = text.partition("{s} ")
    if shape == "be" and head and tail and rng.random() < 0.6:
        words = tail.split(" ")
        at = 1 if words[0] in ("look", "be") else 0
        words.insert(at, rng.choice(forms["slightly" if slight else "strongly"]))
        return head + "{s} " + " ".join(words), amount
    word = rng.choice(forms["slightly" if slight else "very_much"])
    return (f"{word} {text}" if rng.random() < 0.2 else f"{text} {word}"), amount


def _dress(text: str, rng: random.Random) -> str:
    """Subject, polite forms, asides, spelling variants, and now and then a slip of the fingers."""
    forms = _grammar()["forms"]
    text = text.replace("{s}", rng.choice(forms["subjects"]))
    if rng.random() < 0.65:
        text = f"{rng.choice(forms['before'])} {text}"
    if rng.random() < 0.55:
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
    return _slip(text, rng)


def _slip(text: str, rng: random.Random) -> str:
    words = text.split()
    if len(words) > 3 and rng.random() < 0.05:
        words.pop(rng.randrange(2))  # the first words carry the least
    if rng.random() < 0.08:  # a word it has never seen must not throw it off
        strange = "".join(rng.choices("aeioubcdfghlmnprst", k=rng.randint(3, 9)))
        words.insert(rng.randint(0, len(words)), strange)
    text = " ".join(words)
    if len(text) > 6 and rng.random() < 0.04:
        at = rng.randrange(1, len(text) - 1)
        text = text[:at] + text[at + 1 :]
    return text


def _off_topic(rng: random.Random) -> str:
    words = _grammar()["off_topic"]
    if rng.random() < 0.3:
        return str(rng.choice(words["keep"]))
    text = str(rng.choice(words["ask"]))
    for slot, kind in (("{thing}", "things"), ("{other}", "things"), ("{place}", "places")):
        text = text.replace(slot, rng.choice(words[kind]))
    return text
