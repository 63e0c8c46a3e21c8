"""The fields of an edit, declared once: for both bodies, their validation and the OpenAPI document.

Ranges are the server's to judge. Checked here is what the contract cannot carry: a value of another type, a
negative or oversized integer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from retouch.v1.image_edit_pb2 import OutputFormat
from retouch_gateway.values import (
    MAX_IMAGES,
    SWITCH,
    as_boolean,
    as_given,
    as_number,
    boolean,
    choice,
    integer,
    number,
    one_or_several,
    several,
    size,
    switch,
    text,
)

URL, INLINE = "url", "b64_json"
FORMATS = {
    "png": OutputFormat.OUTPUT_FORMAT_PNG,
    "jpeg": OutputFormat.OUTPUT_FORMAT_JPEG,
    "webp": OutputFormat.OUTPUT_FORMAT_WEBP,
}
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of an edit."""

    name: str
    # JSON Schema of its value in a JSON body, where null is the same as absent.
    schema: Schema
    # For the documentation: one sentence each, without a full stop.
    meaning: str
    absent: str
    # (name, JSON value) -> what it means; raises Wrong. Of pictures: as they came, for dialects.py to read.
    read: Callable[[str, Any], Any]
    # What a form carries as text -> the JSON value that is meant. Text that means none is left as it is, for `read`
    # to refuse.
    from_text: Callable[[str], Any] = str
    picture: bool = False
    # False: known from OpenAI's API, accepted, and without any effect here.
    effect: bool = True


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
PICTURE = STRING | {"description": "base64, a `data:` URL with base64, or an `https:` address"}


def _holding(name: str, value: Schema) -> Schema:
    """An object of one field."""
    return {
        "type": "object",
        "properties": {name: value},
        "required": [name],
        "additionalProperties": False,
    }


IMAGE: Schema = {
    "anyOf": [PICTURE, _holding("image_url", {"anyOf": [PICTURE, _holding("url", PICTURE)]})]
}
IMAGES: Schema = {"type": "array", "items": IMAGE, "minItems": 1, "maxItems": MAX_IMAGES}


def _any_case(words: Mapping[str, Any]) -> str:
    """A pattern of JSON Schema, which has no flags."""
    return f"^({'|'.join(re.sub('[a-z]', lambda a: f'[{a[0]}{a[0].upper()}]', w) for w in words)})$"


def _picture(name: str, schema: Schema, read: Callable[..., Any], meaning: str, out: str) -> Field:
    return Field(name=name, schema=schema, meaning=meaning, absent=out, read=read, picture=True)


def _number(name: str, most: float, meaning: str, absent: str) -> Field:
    schema = {"type": "number", "minimum": 0, "maximum": most}
    return Field(
        name=name, schema=schema, meaning=meaning, absent=absent, read=number, from_text=as_number
    )


def _integer(name: str, low: int, high: int, meaning: str, absent: str) -> Field:
    bits, shown = (64, "2^64-1") if high == 2**64 - 1 else (32, str(high))
    return Field(
        name=name,
        schema={"type": "integer", "minimum": low, "maximum": high},
        meaning=meaning,
        absent=absent,
        read=partial(integer, bits=bits, shown=f"{low} to {shown}"),
        from_text=as_number,
    )


def _choice(name: str, meanings: Mapping[str, Any], meaning: str, absent: str) -> Field:
    schema = {"type": "string", "enum": list(meanings)}
    read = partial(choice, meanings=meanings)
    return Field(name=name, schema=schema, meaning=meaning, absent=absent, read=read)


def _ignored(name: str, what: str) -> Field:
    return Field(
        name=name,
        schema=STRING,
        meaning=f"{what}; accepted, without effect here",
        absent="the same",
        read=text,
        effect=False,
    )


FIELDS = (
    _picture(
        "images",
        IMAGES,
        several,
        "PNG, JPEG or WebP. The first is edited, the others are references, as many as the model takes",
        "required, here or as `image`",
    ),
    _picture(
        "image",
        {"anyOf": [*IMAGE["anyOf"], IMAGES]},
        one_or_several,
        "another name of `images`",
        "`images`",
    ),
    _picture(
        "mask",
        IMAGE,
        as_given,
        "where to edit: an image like those, of the first one's width and height",
        "everywhere",
    ),
    Field(
        name="prompt",
        schema=STRING | {"minLength": 1, "maxLength": 4000},
        meaning="the edit, in words",
        absent="required",
        read=text,
    ),
    Field(
        name="negative_prompt",
        schema=STRING | {"maxLength": 4000},
        meaning="what to steer away from, for models with that ability",
        absent="nothing",
        read=text,
    ),
    Field(
        name="model",
        schema=STRING,
        meaning="an id from `/v1/models`",
        absent="the first one served",
        read=text,
    ),
    _integer("n", 1, 10, "how many images; image `i` uses `seed + i`", "1"),
    Field(
        name="size",
        schema=STRING | {"pattern": "^(auto|[0-9]{1,5}x[0-9]{1,5})$"},
        meaning="`256x256`, `512x512`, `1024x1024`, or another `WxH` in pixels that the model's limits allow: the "
        "first image is scaled to cover it and cropped at the centre; `auto` is the same as absent",
        absent="the first image's own, fitted to the model, aspect kept",
        read=size,
    ),
    _choice(
        "response_format",
        {URL: URL, INLINE: INLINE},
        "how images come back",
        "`url` for a JSON body, both for a form, `b64_json` with `stream`",
    ),
    _number("strength", 1, "how far to move from the input", "the model's default"),
    _number("guidance_scale", 20, "how closely to follow the prompt", "the model's default"),
    _integer("num_inference_steps", 1, 100, "denoising steps", "the model's default"),
    _integer(
        "seed",
        0,
        2**64 - 1,
        "the same seed and fields make the same image again",
        "drawn at random",
    ),
    Field(
        name="kontext_max_mode",
        schema={"anyOf": [BOOLEAN, STRING | {"pattern": _any_case(SWITCH)}]},
        meaning="apply the model's `max` profile; no effect on a model that has none",
        absent="false",
        read=switch,
        from_text=as_boolean,
    ),
    _choice("output_format", FORMATS, "the encoding of the images", "`png`"),
    _integer(
        "output_compression", 0, 100, "quality of JPEG and WebP, 100 = best; not for PNG", "90"
    ),
    Field(
        name="stream",
        schema=BOOLEAN,
        meaning="answer with server-sent events",
        absent="false",
        read=boolean,
        from_text=as_boolean,
    ),
    _integer("partial_images", 0, 3, "previews of each image, with `stream` alone", "0"),
    _ignored("quality", "OpenAI's quality of the output"),
    _ignored("complexity", "OpenAI's effort in planning the image"),
    _ignored("background", "OpenAI's transparency of the output"),
    _ignored("input_fidelity", "OpenAI's effort to keep the input's details"),
    _ignored("moderation", "OpenAI's strictness of moderation"),
    _ignored("user", "the caller's id for its end user"),
    _ignored("safety_identifier", "the caller's id for its end user, hashed"),
)
BY_NAME = {field.name: field for field in FIELDS}
