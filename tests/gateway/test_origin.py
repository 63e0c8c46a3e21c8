"""Whose word is believed of the caller's address and of ours."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from retouch_gateway.origin import base_url, client

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
PROXY, STRANGER = "10.1.2.3", "203.0.113.9"


Lines = dict[str, str | list[str]]


def asked(peer: str | None, headers: Lines, scheme: str = "http") -> Request:
    """A request from `peer`, with a header, or several, for each name."""
    lines = [
        (name.encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return Request(
        {
            "type": "http",
            "scheme": scheme,
            "server": ("127.0.0.1", 8000),
            "client": (peer, 1234) if peer else None,
            "path": "/v1/images/edits",
            "headers": lines,
        }
    )


def test_the_operators_word_is_last() -> None:
    request = asked(PROXY, {"host": "evil", "x-forwarded-host": "evil"})
    assert base_url(request, "https://img.example/base/", PROXIES) == "https://img.example/base"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("img.example", "http://img.example"),
        ("img.example.", "http://img.example."),
        ("my_service:80", "http://my_service:80"),
        ("192.0.2.1:8000", "http://192.0.2.1:8000"),
        ("[2001:db8::1]", "http://[2001:db8::1]"),
        ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000"),
    ],
)
def test_as_the_request_was_addressed(host: str, expected: str) -> None:
    assert base_url(asked(STRANGER, {"host": host}), None, PROXIES) == expected


RUBBISH = [
    "",
    "a b",
    "a/b",
    "a?b",
    "a#b",
    "me@a",
    "a\r\nset-cookie: b",
    "a:",
    "a:0",
    "a:65536",
    "a:x",
    "a;b",
    "a..b",
    ".a",
    "[::1",
    "[:::::]",
    "::1",
    "<script>",
    "é.example",
    "a" * 64,
]


@pytest.mark.parametrize("host", RUBBISH)
def test_a_rubbish_host_is_as_good_as_none(host: str) -> None:
    assert base_url(asked(STRANGER, {"host": host}), None, PROXIES) == "http://127.0.0.1:8000"
    proxied = asked(PROXY, {"host": "img.example", "x-forwarded-host": host})
    assert base_url(proxied, None, PROXIES) == "http://img.example"


def test_a_request_without_a_host() -> None:
    request = asked(STRANGER, {})
    assert base_url(request, None, []) == "http://127.0.0.1:8000"
    request.scope["server"] = ("::1", 8000)
    assert base_url(request, None, []) == "http://[::1]:8000"
    request.scope["server"] = None
    assert base_url(request, None, []) == "http://localhost"


FORWARDED: Lines = {
    "host": "retouch:8000",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "img.example",
    "x-forwarded-port": "8443",
    "x-forwarded-prefix": "/retouch",
}


def test_a_trusted_proxys_word() -> None:
    request = asked(PROXY, FORWARDED)
    assert base_url(request, None, PROXIES) == "https://img.example:8443/retouch"


@pytest.mark.parametrize("peer", [STRANGER, None, "2001:db8::1", "testclient"])
def test_nobody_elses(peer: str | None) -> None:
    request = asked(peer, FORWARDED)
    assert base_url(request, None, PROXIES) == "http://retouch:8000"
    assert base_url(request, None, []) == "http://retouch:8000"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "http://retouch:8000"),
        ({"x-forwarded-proto": "HTTPS"}, "https://retouch:8000"),
        ({"x-forwarded-proto": "http, https"}, "https://retouch:8000"),
        ({"x-forwarded-proto": ["http", "https"]}, "https://retouch:8000"),
        ({"x-forwarded-proto": "javascript"}, "http://retouch:8000"),
        ({"x-forwarded-host": "evil.example, img.example"}, "http://img.example"),
        ({"x-forwarded-host": "img.example:81", "x-forwarded-port": "82"}, "http://img.example:81"),
        ({"x-forwarded-host": "img.example", "x-forwarded-port": "80"}, "http://img.example"),
        ({"x-forwarded-host": "[::1]", "x-forwarded-port": "82"}, "http://[::1]:82"),
        ({"x-forwarded-host": "img.example", "x-forwarded-port": "8x"}, "http://img.example"),
        ({"x-forwarded-host": "img.example", "x-forwarded-port": "99999"}, "http://img.example"),
        ({"x-forwarded-prefix": "/a/b-c_d.e~f/"}, "http://retouch:8000/a/b-c_d.e~f"),
        ({"x-forwarded-prefix": "/"}, "http://retouch:8000"),
        ({"x-forwarded-prefix": "//evil.example"}, "http://retouch:8000"),
        ({"x-forwarded-prefix": "/a/../b"}, "http://retouch:8000"),
        ({"x-forwarded-prefix": "a"}, "http://retouch:8000"),
        ({"x-forwarded-prefix": "/a?b"}, "http://retouch:8000"),
    ],
)
def test_what_a_proxy_may_say(headers: Lines, expected: str) -> None:
    assert base_url(asked(PROXY, {"host": "retouch:8000", **headers}), None, PROXIES) == expected


def test_the_sockets_scheme() -> None:
    assert base_url(asked(STRANGER, {"host": "a"}, "https"), None, []) == "https://a"
    request = asked(PROXY, {"host": "a", "x-forwarded-port": "443"}, "https")
    assert base_url(request, None, PROXIES) == "https://a"


@given(
    host=st.text(st.characters(max_codepoint=255)), prefix=st.text(st.characters(max_codepoint=255))
)
def test_whatever_is_said_the_url_is_one(host: str, prefix: str) -> None:
    request = asked(PROXY, {"host": host, "x-forwarded-host": host, "x-forwarded-prefix": prefix})
    url = base_url(request, None, PROXIES)
    parts = urlsplit(url)
    assert parts.geturl() == url
    assert url.isascii()
    assert url.isprintable()
    assert not set(url) & set(" \"'<>\\?#@")
    assert parts.hostname
    assert parts.port != 0


@pytest.mark.parametrize(
    ("peer", "hops", "expected"),
    [
        (STRANGER, None, STRANGER),
        (STRANGER, "198.51.100.1", STRANGER),
        (PROXY, None, PROXY),
        (PROXY, "", PROXY),
        (PROXY, "198.51.100.1", "198.51.100.1"),
        (PROXY, "1.1.1.1, 198.51.100.1", "198.51.100.1"),
        (PROXY, "1.1.1.1, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        (PROXY, ["1.1.1.1", "198.51.100.1, 10.9.9.9"], "198.51.100.1"),
        (PROXY, "10.9.9.8, 10.9.9.9", "10.9.9.8"),
        (PROXY, "198.51.100.1:5678", "198.51.100.1"),
        (PROXY, "[2001:db8::1]:5678", "2001:db8::1"),
        (PROXY, "2001:DB8::1", "2001:db8::1"),
        (PROXY, "::ffff:198.51.100.1", "198.51.100.1"),
        ("::ffff:10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "198.51.100.1", "198.51.100.1"),
        (PROXY, "198.51.100.1, unknown", PROXY),
        (PROXY, "198.51.100.1, rubbish, 10.9.9.9", "10.9.9.9"),
        (PROXY, "198.51.100.1,", PROXY),
        (PROXY, "999.1.1.1", PROXY),
        (None, "198.51.100.1", ""),
        ("testclient", None, ""),
    ],
)
def test_the_caller(peer: str | None, hops: str | list[str] | None, expected: str) -> None:
    headers: Lines = {} if hops is None else {"x-forwarded-for": hops}
    assert client(asked(peer, headers), PROXIES) == expected
    if peer:
        assert client(asked(peer, headers), []) in (peer, peer.removeprefix("::ffff:"), "")


@given(hops=st.text(st.characters(max_codepoint=255)))
def test_whatever_the_hops_say_it_is_an_address(hops: str) -> None:
    ip_address(client(asked(PROXY, {"x-forwarded-for": hops}), PROXIES))
