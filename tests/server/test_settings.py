"""Settings: environment, flags, and every mistake at once by the variable's name."""

from __future__ import annotations

import pytest

from retouch_server.settings import PREFIX, SettingsError, read


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
