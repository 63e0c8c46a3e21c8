"""Settings of the server: default, then environment `RETOUCH_SERVER_*`, then the flag of the same name."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FilePath, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from . import catalog, identity
from .watched import Unusable, contents

PREFIX = "RETOUCH_SERVER_"
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Retouch server: runs diffusion edit models and batches concurrent edits step by step.

    Every flag can be set in the environment too: --queue-size is RETOUCH_SERVER_QUEUE_SIZE.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="retouch-server",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on, for gRPC and metrics.")
    port: Port = Field(50051, description="gRPC port.")
    metrics_port: Port = Field(9090, description="Port of the Prometheus page; 0 = none.")
    tls_cert: FilePath | None = Field(
        None, description="PEM file of the server's certificate: gRPC by TLS; with TLS_KEY."
    )
    tls_key: FilePath | None = Field(
        None,
        validate_default=True,  # it is what TLS_CERT alone would get
        description="PEM file of its private key.",
    )
    tls_client_ca: FilePath | None = Field(
        None, description="PEM file of who signs callers' certificates, which are then needed."
    )
    anonymous: bool = Field(
        False,
        validate_default=True,  # it is what a wide HOST alone would get
        description="Allow a host beyond loopback although callers are not authenticated.",
    )
    models: str = Field(
        "pocket",
        description="What to serve: id=source,... (source: a folder, a hub id, or pocket), or a YAML file.",
    )
    device: str = Field("auto", description="torch device; auto = an accelerator, else cpu.")
    queue_size: Annotated[int, Field(ge=10, le=100_000)] = Field(
        64, description="Edits that may wait for a slot, per model; beyond, RESOURCE_EXHAUSTED."
    )
    max_image_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = Field(
        4 * 1024 * 1024, description="Bytes of one encoded image, most."
    )
    max_image_pixels: Annotated[int, Field(ge=4096, le=178_000_000)] = Field(
        50_000_000, description="Pixels of one input image, most; read from its header."
    )
    max_in_flight_bytes: Annotated[int, Field(ge=1)] = Field(
        2**30,
        description="Bytes of all requests under way, most, or one largest; beyond, RESOURCE_EXHAUSTED.",
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Threads that decode and encode images."
    )
    safety_timeout: Annotated[float, Field(ge=0.1, le=300)] = Field(
        10,
        description="Seconds that the safety checks before an edit, or those after it, may take.",
    )
    provenance: bool = Field(True, description="Mark every result as AI-edited, in XMP.")
    c2pa_cert: FilePath | None = Field(
        None, description="PEM file of the certificates that results are signed by; with C2PA_KEY."
    )
    c2pa_key: FilePath | None = Field(
        None,
        validate_default=True,  # it is what C2PA_CERT alone would get
        description="PEM file of the first one's private key.",
    )
    stall_timeout: Annotated[float, Field(ge=1, le=86400)] = Field(
        300,
        description="Seconds for which an engine may do nothing while it has work; then the server exits.",
    )
    drain_wait: Annotated[float, Field(ge=0, le=60)] = Field(
        0.2, description="Seconds between saying NOT_SERVING and refusing calls, when stopping."
    )
    drain_timeout: Annotated[float, Field(ge=0, le=3600)] = Field(
        300, description="Seconds that accepted edits get to finish, when stopping."
    )
    max_connection_age: Annotated[float, Field(ge=10, le=86400)] = Field(
        60, description="Seconds until a connection is renewed, so that clients find new servers."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log line."
    )
    log_format: Literal["json", "text"] = Field("json", description="json or text.")

    @field_validator("models")
    @classmethod
    def _readable(cls, models: str) -> str:
        catalog.read(models)
        return models

    @field_validator("tls_key")
    @classmethod
    def _pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" not in info.data:
            return key  # that mistake is told already
        cert = info.data["tls_cert"]
        if bool(key) != bool(cert):
            raise ValueError("TLS_CERT and TLS_KEY need each other")
        if key:
            check_pair(cert, key)
        return key

    @field_validator("tls_client_ca")
    @classmethod
    def _authority(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca and "tls_key" in info.data and not info.data["tls_key"]:
            raise ValueError("needs TLS_CERT and TLS_KEY")
        if ca:
            check_authority(ca)
        return ca

    @field_validator("c2pa_cert")
    @classmethod
    def _signs(cls, cert: Path | None, info: ValidationInfo) -> Path | None:
        if cert and info.data.get("provenance") is False:
            raise ValueError("needs PROVENANCE: what is signed is marked too")
        if cert:
            _usable(identity.read_chain, cert)
        return cert

    @field_validator("c2pa_key")
    @classmethod
    def _signs_by(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if "c2pa_cert" not in info.data:
            return key  # that mistake is told already
        cert = info.data["c2pa_cert"]
        if bool(key) != bool(cert):
            raise ValueError("C2PA_CERT and C2PA_KEY need each other")
        if key:
            from . import manifests  # here, since few servers sign

            _usable(manifests.make, cert, key)
        return key

    @field_validator("anonymous")
    @classmethod
    def _asked_for(cls, anonymous: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host")
        open_to_all = not anonymous and not info.data.get("tls_client_ca")
        if host is not None and open_to_all and not _is_loopback(host):
            raise ValueError(
                f"must be true to listen on {host} without TLS_CLIENT_CA: callers are not authenticated"
            )
        return anonymous

    @property
    def max_message_bytes(self) -> int:
        """16 images and a mask, and room for the words."""
        return 17 * self.max_image_bytes + 1024 * 1024


def check_pair(cert: Path, key: Path) -> None:
    """gRPC would take any bytes, and say no more than that connections fail. Raises ValueError, about the key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"is not the PEM key of TLS_CERT{_reason(error)}") from None


def check_authority(ca: Path) -> None:
    """The same of authorities. Raises ValueError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(ca)
    except OSError as error:
        raise ValueError(f"holds no PEM certificate{_reason(error)}") from None


def _usable(make: Callable[..., object], *paths: Path) -> None:
    """Whether something can be made of the files. Raises ValueError with all that is wrong, a line each."""
    try:
        make(*map(contents, paths))
    except Unusable as error:
        raise ValueError(str(error)) from None


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return f": {reason.lower().replace('_', ' ')}" if reason else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def unknown_variables() -> list[str]:
    """Variables that look like settings and are none: most likely typing errors."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


class SettingsError(Exception):
    """Every mistake in the settings, a line each, naming the variable."""


def read(arguments: Sequence[str]) -> Settings:
    """Read the environment and the command line. Raises SettingsError."""
    try:
        return CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        lines = []
        for mistake in error.errors():
            message = mistake["msg"].removeprefix("Value error, ")
            name = f"{PREFIX}{str(mistake['loc'][0]).upper()}"
            lines += [f"{name}: {line}" for line in message.splitlines()]
        raise SettingsError("\n".join(lines)) from None
