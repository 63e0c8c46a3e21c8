"""The playground's files: what is served of them, how, and what they may do. What they do: tests/browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retouch_gateway import openapi, static
from tests.gateway.conftest import Live, StartGateway, error_of

FILES = sorted(path for path in static.FOLDER.iterdir() if path.suffix in static.MEDIA_TYPES)
CONTENTS = {path.name: path.read_bytes() for path in FILES}
MODULES = [path for path in FILES if path.suffix == ".js"]
SINKS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage")


class Index(HTMLParser):
    """What of the page leads elsewhere, names others or runs by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.named: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("src", "href") if name in given]
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            self.named += given.get(name, "").split()
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []


INDEX = Index(CONTENTS[static.INDEX].decode())


async def test_the_page(gateway: Live) -> None:
    response = await gateway.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == CONTENTS[static.INDEX]
    await gateway.eventually("requests_total", 1, route="/", method="GET", code="200")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_its_files(gateway: Live, path: Path) -> None:
    content = CONTENTS[path.name]
    response = await gateway.client.get(f"/playground/{path.name}")
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == static.MEDIA_TYPES[path.suffix]
    assert response.content == content
    head = await gateway.client.head(f"/playground/{path.name}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    "name",
    ["README.md", "app.mjs", "..%2fapp.py", "%2e%2e%2fstatic.py", ".", "app.js%00", "a" * 999],
)
async def test_nothing_else_is_served(gateway: Live, name: str) -> None:
    error_of(await gateway.client.get(f"/playground/{name}"), 404)


async def test_what_the_browser_has_is_not_sent_again(gateway: Live) -> None:
    for path in ("/", "/playground/app.js"):
        first = await gateway.client.get(path)
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = await gateway.client.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        other = await gateway.client.get(path, headers={"if-none-match": '"other"'})
        assert other.content == first.content
        assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("public_url", [None, "https://pictures.example/below"])
async def test_what_it_may_do(start: StartGateway, public_url: str | None) -> None:
    """Ask its own gateway, whatever name hosted images have for others."""
    gateway = await start(public_url=public_url)
    for path in ("/", "/playground/app.js"):
        headers = (await gateway.client.get(path)).headers
        policy = dict(
            each.partition(" ")[::2] for each in headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        for name in ("script-src", "style-src", "connect-src"):
            assert policy[name] == "'self'"
        assert policy["img-src"] == "'self' blob: data:"
        for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
            assert policy[name] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]


@pytest.mark.parametrize("prefix", ["/tools/retouch", "/tools/retouch/"])
async def test_below_a_prefix_its_addresses_begin_with_that(
    start: StartGateway, prefix: str
) -> None:
    """So that they hold at `/tools/retouch` too, where relative ones would lead beside it."""
    told = {"x-forwarded-prefix": prefix}
    gateway = await start(trusted_proxies="127.0.0.1")
    response = await gateway.client.get("/", headers=told)
    assert Index(response.text).links == [f"/tools/retouch/{link}" for link in INDEX.links]
    known = {**told, "if-none-match": response.headers["etag"]}
    assert (await gateway.client.get("/", headers=known)).status_code == 304
    assert (
        await gateway.client.get("/", headers={**known, **{"x-forwarded-prefix": "/other"}})
    ).status_code == 200
    for nonsense in ('/"><script>', "//evil.example", "https://evil.example"):
        response = await gateway.client.get("/", headers={"x-forwarded-prefix": nonsense})
        assert response.content == CONTENTS[static.INDEX]


async def test_a_prefix_that_anybody_tells_of_is_none(gateway: Live) -> None:
    response = await gateway.client.get("/", headers={"x-forwarded-prefix": "/tools/retouch"})
    assert response.content == CONTENTS[static.INDEX]


async def test_it_needs_no_key(start: StartGateway, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{"0" * 64}"\n')
    gateway = await start(keys=keys)
    for path in ("/", "/playground/app.js"):
        assert (await gateway.client.get(path)).status_code == 200


async def test_switched_off_there_is_none(start: StartGateway) -> None:
    gateway = await start(playground=False)
    for path in ("/", "/playground/app.js", "/playground/"):
        error_of(await gateway.client.get(path), 404)
    document = (await gateway.client.get("/openapi.json")).json()
    assert not {"/", "/playground/{name}"} & set(document["paths"])
    assert set(document["paths"]) < set(
        openapi.document(gateway.settings.model_copy(update={"playground": True}))["paths"]
    )


def test_the_page_has_all_that_it_names() -> None:
    assert len(INDEX.ids) == len(set(INDEX.ids))
    assert set(INDEX.named) <= set(INDEX.ids)
    assert INDEX.inline == [], "the policy allows no script and no style within"
    files = {f"playground/{path.name}" for path in FILES}
    assert set(INDEX.links) <= {*files, "docs"}, "relative: the page may lie below a prefix"


def test_all_modules_are_asked_for_at_once() -> None:
    """Not each when the one that imports it has come: that is a journey more for each level of them."""
    text = CONTENTS[static.INDEX].decode()
    preloaded = re.findall(r'<link rel="modulepreload" href="playground/(.+?)">', text)
    assert sorted(["app.js", *preloaded]) == [path.name for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/** "), "says its job"
    assert len(text.splitlines()) < 300
    assert [sink for sink in SINKS if sink in text] == []
    for name in re.findall(r'^import .*"(.+?)"', text, re.MULTILINE):
        assert name.startswith("./")
        assert (static.FOLDER / name).exists(), name
    for name in re.findall(r'\$\("([^"$]+)"\)', text):
        assert name in INDEX.ids, name
    for exported in re.finditer(
        r"^export (?:async )?(?:function\*?|const|class) (\w+)", text, re.M
    ):
        before = text[: exported.start()].rstrip()
        assert before.endswith("*/"), f"{exported[1]} is not told"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_parses(path: Path) -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed: scripts/client-tools installs it")
    command = [node, "--check", "--input-type=module"]
    done = subprocess.run(command, input=CONTENTS[path.name], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
