"""The OpenAPI 3.1 document: what this gateway takes and answers, made from what it goes by."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from retouch_gateway.fields import Schema
from retouch_gateway.schemas import EVENT, FILE, SCHEMAS, form, json_body, ref, text, whole
from retouch_gateway.settings import Settings

# What each status means, of all that a caller can see.
ERRORS = {
    400: "a field is unknown, missing, of a wrong type or out of range; or the body is neither JSON nor a form; or the "
    "`Idempotency-Key` cannot be one; or, then of `type` `moderation_blocked`, a safety check refused the edit",
    401: "no API key, none that is known, or one that has expired: `message` says when",
    403: "the key is known, and may not do this",
    404: "no such model (`param` is `model`), image or path",
    405: "the route takes another method; `Allow` says which",
    408: "the body, or the head, came too slowly",
    409: "an edit with the same `Idempotency-Key` is under way",
    410: "the image has expired",
    412: "the image is none of those in `If-Match`",
    413: "the body is too large",
    415: "the body is neither `application/json` nor `multipart/form-data`",
    416: "no byte of the image is in that range",
    422: "the `Idempotency-Key` was used for another request",
    429: "the queue is full, or the caller has used up what it may; `Retry-After` says for how many seconds",
    431: "the head is larger than 64 KiB",
    500: "the edit failed; the log has it under the request's id. Once it had begun: `x-should-retry: false`",
    502: "the server broke the contract, or went away in the middle of the edit (`x-should-retry: false`)",
    503: "no server is ready, or the image store is not; no work was done, so try again after `Retry-After`",
    504: "the edit took longer than a request may (`x-should-retry: false`)",
}
# What any request may come to, whatever it asks for.
ANYWHERE = (400, 408, 431, 500)
# Answers' headers. Those of ALWAYS are on every one.
HEADERS = {
    "x-request-id": text(
        "the request's id: the caller's own where it is fit to be one, else made here"
    ),
    "openai-processing-ms": text("milliseconds until the answer began", pattern="^[0-9]+$"),
    "x-ratelimit-limit-requests": text("edits allowed, where they are limited", pattern="^[0-9]+$"),
    "x-ratelimit-remaining-requests": text("those that are left", pattern="^[0-9]+$"),
    "x-ratelimit-reset-requests": text("until one more is free, such as `1s` or `6m0s`"),
    "retry-after": whole("seconds until it is worth trying again", minimum=1, maximum=60),
    "x-should-retry": text("`false` where an SDK should not try again by itself"),
    "idempotent-replayed": text("`true` where the answer is one that was given before"),
    "cache-control": text("private, for as long as the image lives"),
    "etag": text("changes when the content does; an image's never does"),
    "content-range": text("which bytes these are, and of how many"),
}
ALWAYS = ("x-request-id", "openai-processing-ms")
_RATE = tuple(name for name in HEADERS if name.startswith("x-ratelimit"))
_WITH_ERROR = {
    400: ("x-should-retry",),
    409: ("retry-after",),
    416: ("content-range",),
    429: ("retry-after", "x-should-retry", *_RATE),
    500: ("x-should-retry",),
    502: ("x-should-retry",),
    503: ("retry-after",),
    504: ("x-should-retry",),
}
# Requests' headers.
IDEMPOTENCY_KEY = (
    "Idempotency-Key",
    "the same key with the same body is answered by the same reply for as long as hosted images live",
    {"type": "string", "pattern": "^[ -~]{1,255}$"},
)
REQUEST_ID = (
    "x-request-id",
    "the caller's own id for this request: letters, digits, `._:-`, at most 128; another is not kept",
    {"type": "string"},
)
TRACEPARENT = ("traceparent", "W3C trace context, carried on to the server", {"type": "string"})
RANGE = ("Range", "one range of bytes; of several, the whole image", {"type": "string"})
IF_MATCH = ("If-Match", "the `etag` of the image one wants", {"type": "string"})
IF_NONE_MATCH = ("If-None-Match", "the `etag` of what one has", {"type": "string"})

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
ASSET_TYPES = ("text/css", "text/html", "text/javascript", "image/jpeg", "image/svg+xml")
NO_KEY: Schema = {"security": []}


def document(settings: Settings) -> dict[str, Any]:
    """What a gateway of these settings serves, as an OpenAPI document."""
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Retouch",
            "version": version("retouch"),
            "description": "Image edits by instruction, compatible with OpenAI's API.",
        },
        "security": [{"bearer": []}, {"x-api-key": []}] if settings.keys else [],
        "paths": {
            "/v1/images/edits": {"post": _edit(settings)},
            "/v1/models": {"get": _models()},
            "/v1/models/{id}": {"get": _model()},
            "/images/{name}": _image(settings),
            "/healthz": {"get": _probe("healthz", "alive", "Whether the gateway lives")},
            "/readyz": {"get": _probe("readyz", "ready", "Whether a server takes edits", 503)},
            "/openapi.json": {"get": _page("openapi", "This document", "application/json")},
            "/docs": {"get": _page("docs", "This document, to be read", "text/html")},
            **(_playground() if settings.playground else {}),
        },
        "components": {
            "schemas": {**SCHEMAS, "EditRequest": json_body(settings), "EditForm": form(settings)},
            "headers": {name: {"schema": schema} for name, schema in HEADERS.items()},
            "responses": {str(status): _error(status, told) for status, told in ERRORS.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _edit(settings: Settings) -> Schema:
    return {
        "operationId": "edit",
        "summary": "Edit images by instruction",
        "description": f"A body may be {settings.body_bytes} bytes and has {settings.body_timeout:g} s to arrive; an "
        f"answer may take {settings.timeout:g} s in all. A caller that hangs up cancels its edit.",
        "parameters": [_given(*header) for header in (IDEMPOTENCY_KEY, REQUEST_ID, TRACEPARENT)],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": ref("EditRequest")},
                "multipart/form-data": {"schema": ref("EditForm")},
            },
        },
        "responses": {
            "200": {
                "description": "The finished edit, or its events where `stream` is true.",
                "headers": _headers(*_RATE, "idempotent-replayed"),
                "content": {
                    "application/json": {"schema": ref("Edited")},
                    "text/event-stream": {"schema": EVENT},
                },
            },
            **_errors(401, 404, 409, 413, 415, 422, 429, 502, 503, 504),
        },
    }


def _models() -> Schema:
    return {
        "operationId": "models",
        "summary": "What is served, with each model's abilities, defaults and limits",
        "responses": {"200": _json(ref("Models")), **_errors(401, 502, 503, 504)},
    }


def _model() -> Schema:
    return {
        "operationId": "model",
        "summary": "One of the models",
        "parameters": [
            _given("id", "its id; a slash in it may be raw or `%2F`", {"type": "string"}, "path")
        ],
        "responses": {"200": _json(ref("Model")), **_errors(401, 404, 502, 503, 504)},
    }


def _image(settings: Settings) -> Schema:
    name = _given(
        "name", "the last part of a URL that an edit answered", {"type": "string"}, "path"
    )
    content: Schema = {kind: {"schema": FILE} for kind in IMAGE_TYPES}
    headers = _headers("cache-control", "etag")
    whole = {"description": "The image.", "headers": headers, "content": content}
    part = {
        "description": "The part of it in `Range`.",
        "headers": headers | _headers("content-range"),
        "content": content,
    }
    same = {"304": {"description": "It is the one that the caller has.", "headers": headers}}
    return {
        "parameters": [name],
        "get": {
            "operationId": "image",
            "summary": "A hosted image",
            "description": f"It lives for {settings.ttl} s. Its URL is the permission to see it.",
            "parameters": [_given(*RANGE), _given(*IF_MATCH), _given(*IF_NONE_MATCH)],
            "responses": {"200": whole, "206": part, **same, **_errors(404, 410, 412, 416, 503)},
            **NO_KEY,
        },
        "head": {
            "operationId": "image_head",
            "summary": "Its headers alone",
            "parameters": [_given(*IF_MATCH), _given(*IF_NONE_MATCH)],
            "responses": {"200": whole | {"content": {}}, **same, **_errors(404, 410, 412, 503)},
            **NO_KEY,
        },
        "delete": {
            "operationId": "image_delete",
            "summary": "Delete it before its time",
            "description": "Where keys are needed, with the key that it was made with.",
            "parameters": [_given(*IF_MATCH)],
            "responses": {
                "204": {"description": "It is gone.", "headers": _headers()},
                **_errors(401, 403, 404, 410, 412, 503),
            },
        },
        "options": {
            "operationId": "image_preflight",
            "summary": "What a browser asks before a script of another site may have it",
            "responses": {
                "204": {"description": "It may.", "headers": _headers()},
                **_errors(),
            },
            **NO_KEY,
        },
    }


def _probe(name: str, status: str, summary: str, *errors: int) -> Schema:
    answer = {
        "type": "object",
        "properties": {"status": {"type": "string", "const": status}},
        "required": ["status"],
    }
    responses = {"200": _json(answer), **_errors(*errors)}
    return {"operationId": name, "summary": summary, "responses": responses, **NO_KEY}


def _playground() -> Schema:
    """The page to try edits on, and what it loads."""
    name = _given("name", "as the page has it", {"type": "string"}, "path")
    page = _asset("playground", "A page to try edits on", "text/html")
    file = _asset("playground_file", "What that page loads", *ASSET_TYPES)
    file["parameters"] = [name, *file["parameters"]]
    file["responses"] |= _errors(404)
    return {"/": {"get": page}, "/playground/{name}": {"get": file}}


def _asset(name: str, summary: str, *media_types: str) -> Schema:
    content: Schema = {kind: {"schema": FILE} for kind in media_types}
    found = {"description": "The file.", "headers": _headers("etag"), "content": content}
    same = {"description": "It is the one that the caller has.", "headers": _headers("etag")}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [_given(*IF_NONE_MATCH)],
        "responses": {"200": found, "304": same, **_errors()},
        **NO_KEY,
    }


def _page(name: str, summary: str, media_type: str) -> Schema:
    answer = {"type": "object" if media_type == "application/json" else "string"}
    found = {
        "description": "The document.",
        "headers": _headers(),
        "content": {media_type: {"schema": answer}},
    }
    responses = {"200": found, **_errors()}
    return {"operationId": name, "summary": summary, "responses": responses, **NO_KEY}


def _given(name: str, told: str, schema: Schema, place: str = "header") -> Schema:
    """A parameter."""
    need = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "description": told, "schema": schema, **need}


def _json(schema: Schema) -> Schema:
    content = {"application/json": {"schema": schema}}
    return {"description": "The answer.", "headers": _headers(), "content": content}


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*ALWAYS, *names)}


def _errors(*statuses: int) -> Schema:
    """Those that a route has of its own, and those that any has."""
    return {
        str(status): {"$ref": f"#/components/responses/{status}"}
        for status in sorted({*statuses, *ANYWHERE})
    }


def _error(status: int, told: str) -> Schema:
    return {
        "description": told,
        "headers": _headers(*_WITH_ERROR.get(status, ())),
        "content": {"application/json": {"schema": ref("Error")}},
    }
