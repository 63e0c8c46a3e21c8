"""Settings: default, then environment (`RETOUCH_GATEWAY_*`), then flags of the same names."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "RETOUCH_GATEWAY_"
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class SettingsError(Exception):
    """Every mistake in the settings, one line each, by variable name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class Settings(BaseSettings):
    """Retouch's REST gateway: OpenAI-compatible image edits over HTTP, translated to gRPC.

    Each flag is also an environment variable: --public-url is RETOUCH_GATEWAY_PUBLIC_URL.
    A flag wins over the environment.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        cli_prog_name="retouch-gateway",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: Port = Field(8000, description="port of the REST API; 0 = any free one")
    metrics_port: Port = Field(9091, description="port of the metrics, on HOST too; 0 = off")
    upstream: str = Field(
        "localhost:50051",
        min_length=1,
        description="the servers: host:port, or dns:///name:port for all addresses behind a name",
    )
    public_url: str | None = Field(
        None, description="what hosted images' URLs begin with; unset: as the request was addressed"
    )
    store: Path = Field(
        Path("~/.local/state/retouch/images"),
        validate_default=True,
        description="folder for images by URL",
    )
    ttl: int = Field(3600, ge=1, le=10**9, description="seconds that a hosted image lives")
    timeout: Seconds = Field(300, description="seconds a request may take in all")
    body_timeout: Seconds = Field(60, description="seconds its body may take to arrive")
    max_image_bytes: int = Field(
        4 * 2**20, ge=1, le=2**26, description="largest encoded image, decoded from base64"
    )
    max_body_bytes: int | None = Field(
        None,
        ge=1,
        description="largest request body; unset: room for 16 images and a mask of that size",
    )
    anonymous: bool = Field(
        False,
        validate_default=True,  # it is what a wide HOST alone would get
        description="serve whoever can reach HOST; needed to listen beyond loopback",
    )
    signing_key: SecretStr | None = Field(
        None,
        description="key of the image URLs, 16 characters or more; several by commas: the first "
        "signs, all verify; unset: a random one, kept in STORE",
    )

    @property
    def body_bytes(self) -> int:
        """The largest request body: 1.5 times the images is base64, line breaks and the rest."""
        return self.max_body_bytes or 17 * self.max_image_bytes * 3 // 2 + 2**20

    @property
    def send_bytes(self) -> int:
        """The largest gRPC request that such a body can become."""
        return 17 * self.max_image_bytes + 2**20

    @property
    def signing_keys(self) -> list[bytes]:
        """The keys given, none if a random one is to be kept."""
        given = self.signing_key.get_secret_value() if self.signing_key else ""
        return [key.strip().encode() for key in given.split(",") if key.strip()]

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        try:
            port_is_one = parts.port is None or parts.port > 0
        except ValueError:
            port_is_one = False
        plain = port_is_one and not any(sign in url for sign in "?#@")
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise ValueError(
                "must be an http:// or https:// address, without user, query or fragment"
            )
        return url.rstrip("/")

    @field_validator("upstream")
    @classmethod
    def _target(cls, target: str) -> str:
        if not re.fullmatch(r"(dns|ipv4|ipv6|unix):.+|[^/\s]+:[0-9]{1,5}", target):
            raise ValueError("must be host:port, or a gRPC name such as dns:///host:port")
        return target

    @field_validator("store", mode="before")
    @classmethod
    def _a_folder(cls, store: object) -> object:
        if not str(store) or "://" in str(store):
            raise ValueError("must be a folder")
        return store

    @field_validator("store")
    @classmethod
    def _folder(cls, folder: Path) -> Path:
        folder = folder.expanduser().absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder} cannot be a folder: {error.strerror}") from None
        return folder

    @field_validator("metrics_port")
    @classmethod
    def _apart(cls, port: int, info: ValidationInfo) -> int:
        if port and port == info.data.get("port"):
            raise ValueError("must differ from the API's port: metrics are not public")
        return port

    @field_validator("signing_key")
    @classmethod
    def _long(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys and any(len(key.strip()) < 16 for key in keys.get_secret_value().split(",")):
            raise ValueError("each key needs 16 characters or more")
        return keys

    @field_validator("anonymous")
    @classmethod
    def _asked_for(cls, anonymous: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host")
        if host is not None and not anonymous and not _is_loopback(host):
            raise ValueError(f"must be true to listen on {host}: whoever reaches it may use it")
        return anonymous


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(arguments: Sequence[str] = ()) -> Settings:
    """The settings from the environment and `arguments`.

    Raises SettingsError with all mistakes. `--help` and unknown flags leave as argparse does.
    """
    try:
        # Known to pydantic-settings, not to its types.
        known: dict[str, Any] = {"_cli_parse_args": list(arguments)}
        return Settings(**known)
    except ValidationError as error:
        raise SettingsError([_line(mistake) for mistake in error.errors()]) from None


def _line(mistake: Any) -> str:
    variable = PREFIX + str(mistake["loc"][0]).upper()
    return f"{variable}: {mistake['msg'].removeprefix('Value error, ')}"


def unknown_variables() -> list[str]:
    """Variables that look like settings and are none: most likely typing errors."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
