"""The OpenAPI document is valid, whole and true; the page shows all of it."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import errors, fields, metrics, openapi, reference, replies, schemas
from retouch_gateway.app import create_app
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings
from retouch_gateway.stores import open_store
from tests.gateway.conftest import Live, StartGateway, b64, error_of, picture

DOCUMENT = openapi.document(Settings.model_construct())


def routes_of(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Path and method of every operation."""
    return {
        (path, method)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }


def fields_of(schema: dict[str, Any]) -> set[str]:
    """An object's fields, and those of the objects in it."""
    properties = schema.get("properties", {})
    return set(properties).union(*map(fields_of, properties.values()))


def closed(schema: Any) -> Any:
    """The same schema, whose objects may have no field but those that it tells of."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {name: closed(inner) for name, inner in schema.items()} | shut


CLOSED = {"components": {"schemas": closed(DOCUMENT["components"]["schemas"])}}


def valid(schema: str, value: Any) -> None:
    """Hold `value` against one of the document's schemas: every field of it is told."""
    OAS31Validator({"$ref": f"#/components/schemas/{schema}", **CLOSED}).validate(value)


def test_it_is_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(json.loads(json.dumps(DOCUMENT))).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_its_routes_are_the_apps(tmp_path: Path) -> None:
    app: Any = create_app(
        Settings(store=str(tmp_path)), open_store(str(tmp_path)), [b"k" * 32], Metrics()
    )
    while not isinstance(app, Starlette):
        app = app.app
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = {
        (re.sub(r":\w+\}", "}", route.path), method.lower())
        for route in routes
        for method in route.methods or ()
    }
    # What Starlette adds: HEAD, of whatever may be got.
    heads = {(path, "head") for path, method in found if method == "get"}
    assert found - heads == routes_of(DOCUMENT) - heads


def test_every_status_that_can_be_is_in_it() -> None:
    def kinds(kind: type[errors.GatewayError]) -> Iterator[int]:
        yield kind.status
        for inner in kind.__subclasses__():
            yield from kinds(inner)

    raised = set(kinds(errors.GatewayError)) - {errors.ClientGone.status}
    below = {404, 405, 400, 408, 431}  # Starlette's own, and protocol.py's
    assert raised | below == set(openapi.ERRORS)
    used = re.findall(r'"#/components/responses/(\d+)"', json.dumps(DOCUMENT["paths"]))
    # No documented method is ever not allowed.
    assert {int(status) for status in used} == set(openapi.ERRORS) - {405}


@pytest.mark.parametrize(
    "route", [route for route in metrics.STARTING if route[0] != metrics.OTHER]
)
def test_statuses_that_are_counted_from_the_start(route: tuple[str, str]) -> None:
    path, method = route
    told = DOCUMENT["paths"][path][method.lower()]["responses"]
    counted = {str(code) for code in metrics.STARTING[route]} - {"499"}
    assert counted <= set(told)


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data"])
def test_both_bodies_have_every_field(media_type: str) -> None:
    edit = DOCUMENT["paths"]["/v1/images/edits"]["post"]
    name = edit["requestBody"]["content"][media_type]["schema"]["$ref"].rpartition("/")[2]
    schema = DOCUMENT["components"]["schemas"][name]
    assert list(schema["properties"]) == [field.name for field in fields.FIELDS]
    assert all(field["description"] for field in schema["properties"].values())


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_objects_are_what_generators_of_clients_can_name(name: str) -> None:
    """Each is one object of fields, no alternative of several; and an answer may gain some."""
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["type"] == "object"
    assert not {"oneOf", "anyOf", "allOf", "not"} & set(schema)
    assert ("additionalProperties" in json.dumps(schema)) is (name in reference.BODIES)


def test_a_forms_files_are_files() -> None:
    form = DOCUMENT["components"]["schemas"]["EditForm"]["properties"]
    for file in (form["images"]["items"], form["image"]["items"], form["mask"]):
        assert file["format"] == "binary"


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"images": ["aGk="], "prompt": "x"}, True),
        ({"image": "aGk=", "prompt": "x", "n": None, "size": "auto", "seed": 2**64 - 1}, True),
        ({"images": [{"image_url": {"url": "https://a/b"}}], "prompt": "x"}, True),
        ({"image": ["aGk="], "prompt": "x", "kontext_max_mode": "On", "user": "me"}, True),
        ({"images": None, "image": "aGk=", "prompt": "x"}, True),
        ({"images": [], "prompt": "x"}, False),
        ({"images": ["aGk="], "prompt": None}, False),
        ({"images": ["aGk="]}, False),
        ({"images": ["aGk="], "prompt": "x", "zoom": 2}, False),
        ({"images": ["aGk="], "prompt": "x", "n": 11}, False),
        ({"images": ["aGk="], "prompt": "x", "n": "1"}, False),
        ({"images": [{"file_id": "f"}], "prompt": "x"}, False),
        ({"images": ["aGk="], "prompt": "x", "kontext_max_mode": "maybe"}, False),
    ],
)
def test_what_a_json_body_may_be(body: dict[str, Any], good: bool) -> None:
    schema = {"$ref": "#/components/schemas/EditRequest", "components": DOCUMENT["components"]}
    assert OAS31Validator(schema).is_valid(body) is good


def test_limits_are_the_gateways_own() -> None:
    settings = Settings.model_construct(
        max_image_bytes=12345, timeout=77, ttl=99, fetch_images=True
    )
    told = json.dumps(openapi.document(settings))
    assert "12345 bytes" in told
    assert "77 s" in told
    assert "99 s" in told
    assert "addresses are fetched" in told


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    assert DOCUMENT["security"] == []
    document = openapi.document(Settings.model_construct(keys=tmp_path / "keys.toml"))
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}]
    free = {
        (path, method)
        for path, method in routes_of(document)
        if document["paths"][path][method].get("security") == []
    }
    needing = {path for path, _ in routes_of(document) - free}
    assert needing == {"/v1/images/edits", "/v1/models", "/v1/models/{id}", "/images/{name}"}
    assert {method for path, method in routes_of(document) - free if "{name}" in path} == {"delete"}
    assert b"request needs a key" in reference.page(document)
    assert b"request needs a key" not in reference.page(DOCUMENT)


async def test_what_needs_a_key_is_what_is_told(start: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{hashlib.sha256(b"ada").hexdigest()}"\n')
    live = await start(keys=file)
    document = (await live.client.get("/openapi.json")).json()
    for path, method in routes_of(document):
        free = document["paths"][path][method].get("security") == []
        response = await live.client.request(method, path)
        assert (response.status_code == 401) is not free, (path, method)
        response = await live.client.request(method, path, headers={"x-api-key": "ada"})
        assert response.status_code != 401, (path, method)


def test_a_model_has_every_key() -> None:
    full = pb.Model(
        capabilities=pb.Capabilities(),
        defaults=pb.Defaults(strength=1, guidance_scale=1),
        limits=pb.Limits(),
    )
    shown = replies.model(full)
    valid("Model", shown)
    least = replies.model(
        pb.Model(capabilities=full.capabilities, defaults=pb.Defaults(), limits=full.limits)
    )
    valid("Model", least)
    assert fields_of(DOCUMENT["components"]["schemas"]["Model"]) == fields_of(
        {"properties": {name: _shape(value) for name, value in shown.items()}}
    )


def _shape(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {"properties": {name: _shape(inner) for name, inner in value.items()}}


async def test_it_is_served(gateway: Live) -> None:
    response = await gateway.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document.pop("servers") == [{"url": f"http://127.0.0.1:{gateway.port}"}]
    assert document == json.loads(json.dumps(openapi.document(gateway.settings)))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": "b64_json", "n": 3},
        {"user": "me", "output_format": "webp", "size": "512x512"},
    ],
)
async def test_answers_are_as_told(gateway: Live, body: dict[str, Any]) -> None:
    valid("Edited", (await gateway.edit(**body)).json())


async def test_a_forms_answer_is_as_told(gateway: Live) -> None:
    files = {"image": ("blob", picture())}
    response = await gateway.client.post("/v1/images/edits", files=files, data={"prompt": "warmer"})
    valid("Edited", response.json())
    assert {"url", "b64_json"} <= set(response.json()["data"][0])


def lose(folder: Path) -> None:
    folder.rename(folder.with_name("gone"))
    folder.write_text("no folder")


async def test_an_answer_when_the_store_fails_is_as_told(start: StartGateway) -> None:
    live = await start()
    lose(Path(live.settings.store))
    answer = (await live.edit()).json()
    valid("Edited", answer)
    assert answer["warning"]


async def test_models_are_as_told(gateway: Live) -> None:
    listed = (await gateway.client.get("/v1/models")).json()
    valid("Models", listed)
    one = (await gateway.client.get("/v1/models/acme/echo")).json()
    valid("Model", one)
    assert listed["data"] == [one]
    assert one["examples"] == ["make it night", "mach’s wärmer"]


async def test_errors_are_as_told(gateway: Live) -> None:
    for response in (await gateway.edit(n=0), await gateway.client.get("/nowhere")):
        valid("Error", response.json())


@pytest.mark.parametrize(
    ("images", "at_fault"), [({"images": None}, "images"), ({"image": b64(picture())}, "image")]
)
async def test_which_images_are_needed_is_told_in_words(
    gateway: Live, images: dict[str, Any], at_fault: str
) -> None:
    told = DOCUMENT["components"]["schemas"]["EditRequest"]["description"]
    assert told.startswith("One of `images` and `image` is needed, not both.")
    error_of(await gateway.edit(**images), 400, at_fault)


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_events_are_as_told(gateway: Live, response_format: str) -> None:
    body = {"stream": True, "partial_images": 2, "n": 2, "response_format": response_format}
    response = await gateway.edit(**body, user="me")
    seen = re.findall(r"^event: (.+)\ndata: (.+)$", response.text, re.MULTILINE)
    names = [name for name, _ in seen]
    assert names == ["image_edit.partial_image"] * 4 + ["image_edit.completed"] * 2
    for name, data in seen:
        valid(schemas.EVENTS[name], json.loads(data))


class Page(HTMLParser):
    """What the page has, and whether its tags make sense."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        assert not {"style", "src"} & set(given)
        assert not any(name.startswith("on") for name in given)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_shows_all_of_it() -> None:
    page = Page(reference.page(DOCUMENT).decode())
    for path, method in routes_of(DOCUMENT):
        assert f"{method.upper()}{path}" in page.words
    for names in (fields.BY_NAME, schemas.EVENTS, openapi.ERRORS, openapi.ALWAYS, schemas.SCHEMAS):
        assert [name for name in names if str(name) not in page.words] == []
    for meaning in openapi.ERRORS.values():
        assert meaning.replace("`", "") in page.words
    assert "`" not in page.words


def test_the_page_leads_nowhere_else() -> None:
    page = Page(reference.page(DOCUMENT).decode())
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} - {"openapi.json"} <= set(page.ids)
    assert not page.tags & {"script", "img", "link", "iframe", "form"}


async def test_the_page_is_served_with_its_own_style_alone(gateway: Live) -> None:
    response = await gateway.client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    style = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert f"style-src 'sha256-{digest}'" in policy
    assert len(style) == 1
    assert response.headers["x-content-type-options"] == "nosniff"
