"""Settings: defaults, environment, flags, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch_gateway.settings import PREFIX, Settings, SettingsError, load, unknown_variables


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(arguments)
    return list(caught.value.lines)


def test_defaults(tmp_path: Path) -> None:
    settings = load()
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 8000, 9091)
    assert settings.upstream == "localhost:50051"
    assert (settings.ttl, settings.timeout, settings.public_url) == (3600, 300, None)
    assert settings.max_image_bytes == 4 * 2**20
    assert settings.store == str(tmp_path / ".local/state/retouch/images")
    assert Path(settings.store).is_dir()
    assert (settings.keys, settings.rate_limit, settings.fetch_images) == (None, None, False)
    assert not settings.anonymous
    # Sixteen images and a mask in base64, with line breaks.
    assert settings.body_bytes > 17 * 4 * 2**20 * 4 / 3 * 78 / 76


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_GATEWAY_PORT", "8001")
    monkeypatch.setenv("RETOUCH_GATEWAY_TTL", "7")
    settings = load(["--port", "8002", "--public-url", "https://x.example/"])
    assert (settings.port, settings.ttl) == (8002, 7)
    assert settings.public_url == "https://x.example"


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description


def test_every_mistake_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = {
        "HOST": "0.0.0.0",
        "PORT": "http",
        "METRICS_PORT": "70000",
        "PUBLIC_URL": "example.com",
        "STORE": str(tmp_path / "file"),
        "TTL": "0",
        "TIMEOUT": "-1",
        "BODY_TIMEOUT": "inf",
        "MAX_IMAGE_BYTES": "0",
        "MAX_BODY_BYTES": "lots",
        "SIGNING_KEY": "long-enough-for-a-key,short",
        "UPSTREAM": "",
        "UPSTREAM_KEY": str(tmp_path / "file"),
        "TRUSTED_PROXIES": "10.0.0.0/8, proxy.example",
        "RATE_LIMIT": "often",
        "CONCURRENCY": "0",
        "LIMITS_STORE": "memcached://localhost",
        "LOG_FORMAT": "xml",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(PREFIX + name, value)
    lines = mistakes()
    named = {line.split(":")[0].removeprefix(PREFIX) for line in lines}
    assert named == set(wrong) - {"HOST"} | {"ANONYMOUS"}
    assert len(lines) == len(named)
    assert all("\n" not in line for line in lines)
    assert "long-enough" not in "".join(lines)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.evil.example"]
)
def test_beyond_loopback_is_asked_for_by_name(host: str) -> None:
    (line,) = mistakes("--host", host)
    assert line.startswith("RETOUCH_GATEWAY_ANONYMOUS: ")
    assert load(["--host", host, "--anonymous"]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_more(host: str) -> None:
    assert load(["--host", host]).host == host


def test_metrics_are_not_public() -> None:
    (line,) = mistakes("--port", "9091")
    assert line.startswith("RETOUCH_GATEWAY_METRICS_PORT: ")
    assert load(["--port", "0", "--metrics-port", "0"]).metrics_port == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "http://",
        "https://x/?a",
        "https://x/#a",
        "//x",
        "",
        "https://u:p@x",
        "https://x:99999",
        "https://x:0",
        " https://x",
        "https://x/a b",
        "https://x/é",
        'https://x/"',
        "https://[zz]/",
    ],
)
def test_a_public_url_is_absolute(url: str) -> None:
    (line,) = mistakes("--public-url", url)
    assert line.startswith("RETOUCH_GATEWAY_PUBLIC_URL: ")


@pytest.mark.parametrize(
    "store",
    [
        *("", "ftp://x/y", "s3://", "S3://bucket", "s3:/bucket", "~nobody-at-all/x"),
        *("s3://user:word@bucket", "s3://bucket?key=word"),
    ],
)
def test_a_store_that_is_neither_folder_nor_bucket(store: str) -> None:
    """A bucket that silently became a folder would lose pictures with the machine."""
    (line,) = mistakes("--store", store)
    assert line.startswith("RETOUCH_GATEWAY_STORE: ")
    assert "word" not in line


@pytest.mark.parametrize("store", ["s3://bucket/a/prefix", "gs://bucket", "az://bucket/prefix"])
def test_a_bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(["--store", store + "/"]).store == store
    monkeypatch.setattr("retouch_gateway.checks.find_spec", lambda _: None)
    (line,) = mistakes("--store", store)
    assert line == "RETOUCH_GATEWAY_STORE: needs the extra: pip install 'retouch[object-store]'"


@pytest.mark.parametrize("limit", ["60 per 5 minutes", "0/minute", "often", ""])
def test_a_rate_that_nobody_could_keep(limit: str) -> None:
    (line,) = mistakes("--rate-limit", limit)
    assert line == "RETOUCH_GATEWAY_RATE_LIMIT: must be such as 60/minute, or 10/second;1000/day"


@pytest.mark.parametrize(
    "store",
    [
        "redis://:secret@h:abc",
        "redis://h?secret=1",
        "redis://",
        "x",
        "redis://:se/cret@h:1",
        "redis://h:1/x",
    ],
)
def test_a_place_where_nothing_can_be_counted(store: str) -> None:
    (line,) = mistakes("--limits-store", store)
    assert line.startswith("RETOUCH_GATEWAY_LIMITS_STORE: ")
    assert "se" not in line.partition(": must")[2]


def test_one_mistake_is_one_line() -> None:
    """An operator whose file of keys is not found must not read that he should let everybody in."""
    (line,) = mistakes("--host", "0.0.0.0", "--keys", "/nope")
    assert line.startswith("RETOUCH_GATEWAY_KEYS: ")
    (line,) = mistakes("--upstream-cert", "/nope")
    assert line.startswith("RETOUCH_GATEWAY_UPSTREAM_CERT: ")


def test_several_upstreams() -> None:
    settings = load(["--upstream", "a:50051, dns:///b:50051"])
    assert settings.upstreams == ["a:50051", "dns:///b:50051"]
    mistakes("--upstream", "a:50051,b")


def test_networks_of_proxies() -> None:
    shown = [str(each) for each in load(["--trusted-proxies", "10.0.0.0/8,::1"]).networks]
    assert shown == ["10.0.0.0/8", "::1/128"]


def test_keys_open_a_wide_host(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    assert load(["--host", "0.0.0.0", "--keys", str(keys)]).keys == keys


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    pem.write_text("")
    (line,) = mistakes("--upstream-cert", str(pem))
    assert line == "RETOUCH_GATEWAY_UPSTREAM_KEY: UPSTREAM_CERT and UPSTREAM_KEY need each other"


@pytest.mark.parametrize(
    "target",
    ["http://x:50051", "x", "x:", "not a target::", "dns:", "https:///x:1", "a:99999", "::1:50051"],
)
def test_an_upstream_that_leads_nowhere(target: str) -> None:
    (line,) = mistakes("--upstream", target)
    assert line.startswith("RETOUCH_GATEWAY_UPSTREAM: must be host:port")


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "[::1]:50051",
        "dns:///servers:50051",
        "dns:servers:1",
        "ipv4:1.2.3.4:5",
        "unix:/a/b",
    ],
)
def test_an_upstream_as_grpc_names_it(target: str) -> None:
    assert load(["--upstream", target]).upstream == target


def test_signing_keys() -> None:
    assert load().signing_keys == []
    first, second = "a" * 16, "b" * 16
    settings = load(["--signing-key", f"{first}, {second}"])
    assert settings.signing_keys == [first.encode(), second.encode()]
    assert first not in repr(settings)


def test_typing_errors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_GATEWAY_PROT", "1")
    monkeypatch.setenv("RETOUCH_GATEWAY_PORT", "1")
    assert unknown_variables() == ["RETOUCH_GATEWAY_PROT"]
