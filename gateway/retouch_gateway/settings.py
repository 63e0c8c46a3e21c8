"""Settings: default, then environment (`RETOUCH_GATEWAY_*`), then flags of the same names."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from retouch_gateway import checks
from retouch_gateway.keys import MAX_CONCURRENCY
from retouch_gateway.watched import Unusable

PREFIX = "RETOUCH_GATEWAY_"
KEY_CHARACTERS = 16  # of a signing key, least
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class SettingsError(Unusable):
    """Every mistake in the settings, one line each, by variable name."""


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
    upstream: Annotated[str, AfterValidator(checks.targets)] = Field(
        "localhost:50051",
        min_length=1,
        description="the servers: host:port, or dns:///name:port for all addresses behind a name; "
        "several by commas",
    )
    upstream_tls: bool = Field(
        False, description="speak TLS to the servers, trusting UPSTREAM_CA, else the system's roots"
    )
    upstream_ca: FilePath | None = Field(
        None, description="PEM file of whom to trust for a server's certificate; turns TLS on"
    )
    upstream_cert: FilePath | None = Field(
        None, description="PEM file of this gateway's own certificate (mTLS); with UPSTREAM_KEY"
    )
    upstream_key: FilePath | None = Field(
        None,
        validate_default=True,  # it is what UPSTREAM_CERT alone would get
        description="PEM file of its private key",
    )
    public_url: Annotated[str, AfterValidator(checks.public_url)] | None = Field(
        None, description="what hosted images' URLs begin with; unset: as the request was addressed"
    )
    trusted_proxies: Annotated[str, AfterValidator(checks.networks)] | None = Field(
        None,
        description="addresses or networks, by commas, whose X-Forwarded-* headers are believed",
    )
    store: Annotated[str, AfterValidator(checks.store)] = Field(
        "~/.local/state/retouch/images",
        validate_default=True,
        description="images by URL: a folder, or s3://bucket/prefix, gs://… or az://…",
    )
    ttl: int = Field(3600, ge=1, le=10**9, description="seconds that a hosted image lives")
    timeout: Seconds = Field(300, description="seconds a request may take in all")
    body_timeout: Seconds = Field(60, description="seconds its body may take to arrive")
    keep_alive: int = Field(
        75,
        ge=1,
        le=86400,
        description="seconds that a connection may idle; more than a load balancer's own",
    )
    drain_wait: float = Field(
        0.2,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="seconds for which all is still answered, when stopping, and callers are asked "
        "to leave",
    )
    max_image_bytes: int = Field(
        4 * 2**20, ge=1, le=2**26, description="largest encoded image, decoded from base64"
    )
    max_body_bytes: int | None = Field(
        None,
        ge=1,
        description="largest request body; unset: room for 16 images and a mask of that size",
    )
    max_in_flight_bytes: int = Field(
        2**30, ge=1, description="largest sum of the bodies under way; beyond it, 429"
    )
    fetch_images: bool = Field(
        False, description="fetch images given as https addresses, from public hosts alone"
    )
    fetch_timeout: Seconds = Field(
        10, description="seconds that fetching a request's images may take"
    )
    playground: bool = Field(True, description="serve a page to try edits on, at /")
    keys: FilePath | None = Field(
        None, description="TOML file of API keys' hashes; read again when it changes"
    )
    rate_limit: Annotated[str, AfterValidator(checks.rate_limit)] | None = Field(
        None,
        description="edits allowed per key, or per address without keys, as 60/minute; several by ;",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        le=MAX_CONCURRENCY,
        description="edits under way at once per key, or per address without keys",
    )
    limits_store: Annotated[str, AfterValidator(checks.limits_store)] = Field(
        "memory://", description="where they are counted: memory://, or redis://host:port for all"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe log line"
    )
    log_format: Literal["json", "text"] = Field("json", description="json or text")
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
    signing_key_file: FilePath | None = Field(
        None,
        description="file of the same, by commas or a line each; read again when it changes",
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
    def upstreams(self) -> list[str]:
        """The targets, in order: the first one's first model is the default."""
        return checks.parts(self.upstream)

    @property
    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The trusted proxies."""
        return [ipaddress.ip_network(each) for each in checks.parts(self.trusted_proxies)]

    @property
    def signing_keys(self) -> list[bytes]:
        """The keys given, none if a random one is to be kept."""
        given = self.signing_key.get_secret_value() if self.signing_key else ""
        return [key.strip().encode() for key in given.split(",") if key.strip()]

    @field_validator("upstream_key")
    @classmethod
    def _pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        cert = info.data.get("upstream_cert", key)  # a wrong one has been told of
        if bool(key) != bool(cert):
            raise ValueError("UPSTREAM_CERT and UPSTREAM_KEY need each other")
        return key

    @field_validator("metrics_port")
    @classmethod
    def _apart(cls, port: int, info: ValidationInfo) -> int:
        if port and port == info.data.get("port"):
            raise ValueError("must differ from the API's port: metrics are not public")
        return port

    @field_validator("signing_key")
    @classmethod
    def _long(cls, keys: SecretStr | None) -> SecretStr | None:
        given = keys.get_secret_value().split(",") if keys else ()
        if any(len(key.strip()) < KEY_CHARACTERS for key in given):
            raise ValueError(f"each key needs {KEY_CHARACTERS} characters or more")
        return keys

    @field_validator("signing_key_file")
    @classmethod
    def _either(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path and info.data.get("signing_key"):
            raise ValueError("takes the place of SIGNING_KEY: set one of them")
        return path

    @field_validator("anonymous")
    @classmethod
    def _asked_for(cls, anonymous: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host", "localhost")
        open_to_all = not anonymous and info.data.get("keys", "wrong") is None
        if open_to_all and not checks.is_loopback(host):
            raise ValueError(
                f"must be true to listen on {host} without KEYS: whoever reaches it may use it"
            )
        return anonymous


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
