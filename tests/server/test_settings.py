"""Settings: environment, flags, and every mistake at once by the variable's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch_server.settings import PREFIX, SettingsError, read
from tests.certificates import Authority


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read([])
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 50051, 9090)
    assert settings.models == "pocket"
    assert settings.max_image_bytes == 4 * 1024 * 1024


def test_a_flag_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "PORT", "1234")
    monkeypatch.setenv(PREFIX + "QUEUE_SIZE", "99")
    settings = read(["--port", "4321", "--metrics-port=0"])
    assert (settings.port, settings.queue_size, settings.metrics_port) == (4321, 99, 0)


def test_every_mistake_at_once_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PORT": "no",
        "QUEUE_SIZE": "0",
        "MODELS": "nonsense",
        "LOG_LEVEL": "LOUD",
        "HOST": "0.0.0.0",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as mistakes:
        read([])
    lines = str(mistakes.value).splitlines()
    named = {line.split(":")[0] for line in lines}
    assert named == {
        PREFIX + name for name in ("PORT", "QUEUE_SIZE", "MODELS", "LOG_LEVEL", "ANONYMOUS")
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_binding_beyond_loopback_must_be_asked_for(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + "HOST", host)
    with pytest.raises(SettingsError, match=f"{PREFIX}ANONYMOUS: must be true to listen on"):
        read([])
    monkeypatch.setenv(PREFIX + "ANONYMOUS", "true")
    assert read([]).host == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "127.8.8.8"])
def test_loopback_needs_no_leave(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "HOST", host)
    assert read([]).host == host


def test_messages_hold_sixteen_images_and_a_mask() -> None:
    assert read([]).max_message_bytes > 17 * 4 * 1024 * 1024


def authority(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One whose certificate for the server is set."""
    ca = Authority(folder)
    pair = ca.issue("server")
    monkeypatch.setenv(PREFIX + "TLS_CERT", str(pair.cert))
    monkeypatch.setenv(PREFIX + "TLS_KEY", str(pair.key))
    return ca


def test_callers_that_prove_themselves_may_come_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = authority(tmp_path, monkeypatch)
    monkeypatch.setenv(PREFIX + "HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="ANONYMOUS: must be true"):
        read([])  # TLS alone keeps nobody out
    monkeypatch.setenv(PREFIX + "TLS_CLIENT_CA", str(ca.cert))
    assert read([]).tls_client_ca == ca.cert


@pytest.mark.parametrize(
    ("variable", "file", "words"),
    [
        ("TLS_KEY", "other.key", "TLS_KEY: is not the PEM key of TLS_CERT: key values mismatch"),
        ("TLS_KEY", "garbage", "TLS_KEY: is not the PEM key of TLS_CERT"),
        ("TLS_CERT", "garbage", "TLS_KEY: is not the PEM key of TLS_CERT"),
        ("TLS_CERT", "nowhere", "TLS_CERT: Path does not point to a file"),
        ("TLS_KEY", None, "TLS_KEY: TLS_CERT and TLS_KEY need each other"),
        ("TLS_CERT", None, "TLS_KEY: TLS_CERT and TLS_KEY need each other"),
        ("TLS_CLIENT_CA", "garbage", "TLS_CLIENT_CA: holds no PEM certificate"),
    ],
)
def test_certificates_that_make_no_sense(
    variable: str, file: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority(tmp_path, monkeypatch).issue("other")
    (tmp_path / "garbage").write_text("-----BEGIN CERTIFICATE-----\nno\n")
    if file:
        monkeypatch.setenv(PREFIX + variable, str(tmp_path / file))
    else:
        monkeypatch.delenv(PREFIX + variable)
    with pytest.raises(SettingsError) as mistakes:
        read([])
    assert str(mistakes.value) == PREFIX + words


def test_callers_can_prove_themselves_by_tls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + "TLS_CLIENT_CA", str(Authority(tmp_path).cert))
    with pytest.raises(SettingsError, match="TLS_CLIENT_CA: needs TLS_CERT and TLS_KEY"):
        read([])
