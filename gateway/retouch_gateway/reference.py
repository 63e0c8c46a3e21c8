"""The OpenAPI document as a page to read: one answer, no script, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

CSS = Path(__file__).with_name("reference.css").read_text()
_HASH = b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
BODIES = ("EditRequest", "EditForm")  # told with their operation
KEYS = "Unless said otherwise a request needs a key, as `Authorization: Bearer KEY` or as `x-api-key: KEY`."
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def page(document: dict[str, Any]) -> bytes:
    """`document`, made by openapi.py, as HTML; to be sent with HEADERS."""
    info = document["info"]
    schemas = dict(document["components"]["schemas"])
    bodies = {f"#/components/schemas/{name}": schemas.pop(name) for name in BODIES}
    keys = KEYS if document["security"] else "No key is needed."
    operations = [
        (method, path, operation, [*shared.get("parameters", []), *operation.get("parameters", [])])
        for path, shared in document["paths"].items()
        for method, operation in shared.items()
        if method != "parameters"
    ]
    links = (
        f'<a href="#{operation["operationId"]}">{_route(method, path)}</a>'
        for method, path, operation, _ in operations
    )
    body = "".join(
        (
            f"<h1>{escape(info['title'])} <span class=soft>{escape(info['version'])}</span></h1>",
            f"<p>{_prose(info['description'])} ",
            f'{_prose(keys)} For machines: <a href="openapi.json">openapi.json</a>.</p>',
            f"<nav>{''.join(links)}<a href='#objects'>Objects</a><a href='#statuses'>Statuses</a></nav>",
            *(_operation(*operation, bodies) for operation in operations),
            "<h2 id=objects>Objects</h2>",
            *(_object(name, schema) for name, schema in schemas.items()),
            "<h2 id=statuses>Statuses</h2>",
            _statuses(document["components"]["responses"]),
        )
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{CSS}</style></head><body>{body}</body></html>"
    ).encode()


def _operation(
    method: str, path: str, operation: Any, parameters: list[Any], bodies: dict[str, Any]
) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    open_to_all = " No key is needed." if operation.get("security") == [] else ""
    parts = [
        f'<h2 id="{operation["operationId"]}">{_route(method, path)}</h2>',
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}{open_to_all}</p>",
    ]
    if parameters:
        rows = ((_code(p["name"]), p["in"], _prose(p["description"])) for p in parameters)
        parts.append(_table("Parameters", ("name", "in", "meaning"), rows))
    if content:
        parts.append(
            _fields({kind: bodies[body["schema"]["$ref"]] for kind, body in content.items()})
        )
    parts.append(_answers(operation["responses"]))
    return "".join(parts)


def _fields(bodies: dict[str, Any]) -> str:
    """The JSON body, and where a form's part is another."""
    body, form = bodies["application/json"], bodies["multipart/form-data"]
    rows = []
    for name, field in body["properties"].items():
        kinds = list(dict.fromkeys((_kind(field), _kind(form["properties"][name]))))
        rows.append((_code(name), "<br>in a form: ".join(kinds), _prose(field["description"])))
    told = f"<p>As {' or '.join(map(_code, bodies))}. {_prose(body['description'])}</p>"
    return told + _table("Body", ("field", "value", "meaning"), rows)


def _answers(responses: dict[str, Any]) -> str:
    rows = [
        (_code(status), types, what, _prose(response["description"]))
        for status, response in responses.items()
        if "$ref" not in response
        for what, types in _by_content(response.get("content", {})).items()
    ]
    errors = " ".join(
        f'<a href="#{status}">{_code(status)}</a>'
        for status, response in responses.items()
        if "$ref" in response
    )
    return f"{_table('Answers', ('status', 'as', 'what', ''), rows)}<p>Errors: {errors}</p>"


def _by_content(content: dict[str, Any]) -> dict[str, str]:
    """What is in an answer -> as which types."""
    found: dict[str, str] = {}
    for media_type, body in content.items():
        what = _events(body["schema"]) or _kind(body["schema"])
        found[what] = f"{found.get(what, '')} {_code(media_type)}"
    return found or {"": ""}


def _events(schema: dict[str, Any]) -> str:
    """What is in each server-sent event, if they are some."""
    fields = (event["properties"] for event in schema.get("oneOf", ()))
    return "<br>".join(
        f"{_kind(field['event'])}: {_kind(field['data']['contentSchema'])}" for field in fields
    )


def _object(name: str, schema: dict[str, Any]) -> str:
    rows = (
        (_code(path), _kind(field), _prose(field.get("description", "")))
        for path, field in _nested(schema)
    )
    table = _table("", ("field", "type", "meaning"), rows)
    return f'<h3 id="{name}">{name}</h3><p>{_prose(schema["description"])}</p>{table}'


def _nested(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field, those of inner objects too, by its path."""
    for name, field in schema["properties"].items():
        yield path + name, field
        if "properties" in field:
            yield from _nested(field, f"{path}{name}.")


def _statuses(responses: dict[str, Any]) -> str:
    rows = (
        (
            f'<span id="{status}">{_code(status)}</span>',
            _prose(response["description"]),
            " ".join(map(_code, response["headers"])),
        )
        for status, response in responses.items()
    )
    return _table("", ("status", "when", "headers"), rows)


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return " or ".join(map(_code, schema["enum"]))
    if "anyOf" in schema and "properties" not in schema:
        kinds = [_kind(inner) for inner in schema["anyOf"] if inner != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type", "")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"array{_range(schema, 'minItems', 'maxItems')} of {_kind(schema['items'])}"
    if "properties" in schema and len(schema["properties"]) == 1:
        ((name, inner),) = schema["properties"].items()
        return f"{{{_code(name)}: {_kind(inner)}}}"
    if "contentMediaType" in schema:
        return "file"
    size = _range(schema, "minLength", "maxLength", " characters")
    return f"{kind}{_range(schema, 'minimum', 'maximum')}{size}"


def _range(schema: dict[str, Any], least: str, most: str, unit: str = "") -> str:
    if most not in schema:
        return ""
    return f" {schema.get(least, 0)}..{_power(schema[most])}{unit}"


def _power(number: float) -> str:
    return "2^64-1" if number == 2**64 - 1 else str(number)


def _route(method: str, path: str) -> str:
    return f"<code><span class=method>{method.upper()}</span>{escape(path)}</code>"


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = "".join(f"<th>{escape(name)}" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    caption = f"<h3>{title}</h3>" if title else ""
    return f"{caption}<div class=wide><table><thead><tr>{heads}<tbody>{lines}</table></div>"


def _code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def _prose(text: str) -> str:
    """Plain text with `code` in it."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
