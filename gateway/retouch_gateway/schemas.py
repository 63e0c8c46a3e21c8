"""What the gateway takes and answers, as JSON Schema."""

from __future__ import annotations

from typing import Any

from retouch_gateway.errors import ModerationBlocked, error_type
from retouch_gateway.fields import BY_NAME, FIELDS, Field, Schema
from retouch_gateway.settings import Settings

# `format` is what 3.0 had, and what most generators of clients still look for.
FILE: Schema = {
    "type": "string",
    "format": "binary",
    "contentMediaType": "application/octet-stream",
}
URL_LIFE = "the Unix second it is gone"
BACKGROUND = "OpenAI's word for its transparency; always `auto`"
QUALITY = "OpenAI's word for its quality; always `auto`"


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def whole(description: str, **more: Any) -> Schema:
    return {"type": "integer", "description": description, "minimum": 0, **more}


def number(description: str, most: float) -> Schema:
    return {"type": "number", "description": description, "minimum": 0, "maximum": most}


def yes(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def thing(description: str, fields: Schema, optional: tuple[str, ...] = ()) -> Schema:
    """An object of `fields`, all there but for the optional ones. There may be others one day."""
    return {
        "type": "object",
        "description": description,
        "properties": fields,
        "required": [name for name in fields if name not in optional],
    }


_TOKENS = thing(
    "OpenAI's split of it; 0",
    {"image_tokens": whole("0"), "text_tokens": whole("0")},
)
_PLACE: Schema = {
    "url": text("where the image is", format="uri"),
    "expires_at": whole(URL_LIFE),
    "b64_json": text("the image itself, in base64", contentEncoding="base64"),
}
_ORIGIN: Schema = {
    "revised_prompt": text(
        "the prompt as the model read it: where its text encoder is of a fixed length, the part that fits"
    ),
    "seed": whole("makes this image again, alone, with `n` = 1", maximum=2**64 - 1),
}
_LOOK: Schema = {
    "size": text("width x height in pixels", pattern="^[0-9]+x[0-9]+$"),
    "output_format": text("its encoding", enum=["png", "jpeg", "webp"]),
}
_REMARKS: Schema = {
    "ignored": {
        "type": "array",
        "items": {"type": "string"},
        "description": "only if there are any: the fields given that have no effect here",
    },
    "warning": text(
        "only if the image store failed: what it failed on carries `b64_json` instead of `url`"
    ),
}
_HEAD: Schema = {
    "created_at": whole("when it was sent, Unix seconds"),
    "quality": text(QUALITY, const="auto"),
    "background": text(BACKGROUND, const="auto"),
    **_LOOK,
    "image_index": whole("which of the `n` images, from 0"),
}


def _event(name: str, description: str, fields: Schema, optional: tuple[str, ...] = ()) -> Schema:
    return thing(
        description, {"type": {"type": "string", "const": name}, **_HEAD, **fields}, optional
    )


SCHEMAS: dict[str, Schema] = {
    "Edited": thing(
        "A finished edit.",
        {
            "created": whole("when it was answered, Unix seconds"),
            "data": {
                "type": "array",
                "items": ref("Image"),
                "minItems": 1,
                "maxItems": 10,
                "description": "`n` images, in the order of their seeds",
            },
            "model": text("who made them"),
            **_LOOK,
            "usage": ref("Usage"),
            **_REMARKS,
        },
        tuple(_REMARKS),
    ),
    "Image": thing(
        "One image: by URL, inline, or both, as `response_format` has it.",
        _PLACE | _ORIGIN,
        tuple(_PLACE),
    ),
    "Usage": thing(
        "What was spent. Nothing is counted in tokens here: OpenAI's counts are there for clients that want them.",
        {
            "input_images": whole("images read, the mask not counted"),
            "output_images": whole("images made"),
            "steps": whole("denoising steps, over all images"),
            "input_tokens": whole("0"),
            "input_tokens_details": _TOKENS,
            "output_tokens": whole("0"),
            "output_tokens_details": _TOKENS,
            "total_tokens": whole("0"),
        },
    ),
    "PartialImage": _event(
        "image_edit.partial_image",
        "A preview of an image that is not finished.",
        {
            "b64_json": text("the preview, in base64", contentEncoding="base64"),
            "partial_image_index": whole("which preview of that image, from 0", maximum=2),
        },
    ),
    "Completed": _event(
        "image_edit.completed",
        "A finished image. There is one of these for each of the `n`, in their order.",
        _PLACE | _ORIGIN | {"model": text("who made it"), "usage": ref("Usage")} | _REMARKS,
        (*_PLACE, *_REMARKS),
    ),
    "Model": thing(
        "A model that is served.",
        {
            "object": {"type": "string", "const": "model"},
            "owned_by": {"type": "string", "const": "retouch"},
            "id": text("what the field `model` takes"),
            "pipeline": text("class of the diffusers pipeline that runs plain edits"),
            "created": {"type": "integer", "description": "when it was loaded, Unix seconds"},
            "capabilities": thing(
                "Which fields it takes. One that it does not take is a 400, not ignored.",
                {
                    "mask": yes("takes `mask`"),
                    "strength": yes("takes `strength`"),
                    "negative_prompt": yes("takes `negative_prompt`"),
                    "max_mode": yes("has a profile that `kontext_max_mode` applies"),
                    "guidance_scale": yes("takes `guidance_scale`"),
                },
            ),
            "defaults": thing(
                "What an absent field means.",
                {
                    "strength": number("only where it takes one", 1),
                    "guidance_scale": number("only where it takes one", 20),
                    "num_inference_steps": whole("denoising steps", maximum=100),
                },
                ("strength", "guidance_scale"),
            ),
            "limits": thing(
                "What it takes.",
                {
                    "max_images": whole("images a request", maximum=16),
                    "size_multiple": whole("width and height are multiples of it, pixels"),
                    "min_pixels": whole("least width x height"),
                    "max_pixels": whole("most width x height"),
                    "max_image_bytes": whole("bytes of an encoded image, most"),
                    "max_partial_images": whole("previews of an image, most"),
                },
            ),
            "examples": {
                "type": "array",
                "items": {"type": "string"},
                "maxItems": 24,
                "description": "instructions to try, of 1 to 200 characters each",
            },
        },
    ),
    "Models": thing(
        "All that are served, the default first.",
        {
            "object": {"type": "string", "const": "list"},
            "data": {"type": "array", "items": ref("Model")},
        },
    ),
    "Error": thing(
        "Every failed request, on every path.",
        {
            "error": thing(
                "What went wrong.",
                {
                    "message": text("every fault that was found, in words"),
                    "type": text(
                        "what kind of fault",
                        enum=sorted(
                            {error_type(status) for status in (400, 401, 403, 429, 500)}
                            | {str(ModerationBlocked.kind)}
                        ),
                    ),
                    "param": {
                        "type": ["string", "null"],
                        "description": "the first field at fault (`images[0]` is the first image), if one is",
                    },
                    "code": {"type": "integer", "description": "the HTTP status, as a number"},
                },
            )
        },
    ),
}
EVENTS = {
    "image_edit.partial_image": "PartialImage",
    "image_edit.completed": "Completed",
    "error": "Error",
}
# One server-sent event.
EVENT: Schema = {
    "description": "ended by an `image_edit.completed` for each image, or by one `error`",
    "oneOf": [
        {
            "type": "object",
            "properties": {
                "event": {"type": "string", "const": name},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": ref(data),
                },
            },
            "required": ["event", "data"],
        }
        for name, data in EVENTS.items()
    ],
}


def json_body(settings: Settings) -> Schema:
    # `null` is the same as absent, which `prompt` may not be.
    properties = {
        field.name: _property(field, {"anyOf": [field.schema, {"type": "null"}]})
        for field in FIELDS
    }
    properties["prompt"] = _property(BY_NAME["prompt"], BY_NAME["prompt"].schema)
    return _body(settings, properties, "One of `images` and `image` is needed, not both.")


def form(settings: Settings) -> Schema:
    """The same fields as parts of a form."""
    properties = {field.name: _property(field, field.schema) for field in FIELDS}
    for name in ("images", "image"):
        told = f"one to sixteen parts, each a file, or text as in a JSON body; `{name}[]` too"
        properties[name] = {"type": "array", "items": FILE, "minItems": 1, "maxItems": 16}
        properties[name]["description"] = told
    properties["mask"] = FILE | {"description": properties["mask"]["description"]}
    return _body(
        settings, properties, "One of `images` and `image` is needed; those of both go together."
    )


def _body(settings: Settings, properties: Schema, images: str) -> Schema:
    # The rule of `images` is told in words: as a schema it leaves generators of clients without a model of the body.
    fetched = "are fetched" if settings.fetch_images else "are not fetched here"
    return {
        "type": "object",
        "description": f"{images} An image is at most {settings.max_image_bytes} bytes, decoded; `https:` addresses "
        f"{fetched}.",
        "properties": properties,
        "required": ["prompt"],
        "additionalProperties": False,
    }


def _property(field: Field, schema: Schema) -> Schema:
    absent = f". Absent: {field.absent}" if field.effect else ""
    return schema | {"description": field.meaning + absent}
