"""Where the tiers listen."""

import pytest

from retouch_cli.addresses import Address, Addresses


def test_defaults() -> None:
    addresses = Addresses.of({})
    assert [each.authority for each in addresses] == [
        "127.0.0.1:50051",
        "127.0.0.1:9090",
        "127.0.0.1:8000",
        "127.0.0.1:9091",
    ]


def test_a_metrics_port_of_0_is_off() -> None:
    addresses = Addresses.of({"RETOUCH_SERVER_METRICS_PORT": "0"})
    assert addresses.server_metrics is None
    assert len([*addresses]) == 3


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("10.0.0.7", "http://10.0.0.7:80"),
    ],
)
def test_a_wildcard_is_reached_over_loopback(host: str, url: str) -> None:
    assert Address(host, 80, "PORT").url == url
