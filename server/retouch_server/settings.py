"""Settings of the server: default, then environment `RETOUCH_SERVER_*`, then the flag of the same name."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from . import catalog

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
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="Threads that decode and encode images."
    )
    drain_wait: Annotated[float, Field(ge=0, le=60)] = Field(
        0.2, description="Seconds between saying NOT_SERVING and refusing calls, when stopping."
    )
    drain_timeout: Annotated[float, Field(ge=0, le=3600)] = Field(
        300, description="Seconds that accepted edits get to finish, when stopping."
    )
    max_connection_age: Annotated[float, Field(ge=10, le=86400)] = Field(
        300, description="Seconds until a connection is renewed, so that clients find new servers."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log line."
    )

    @field_validator("models")
    @classmethod
    def _readable(cls, models: str) -> str:
        catalog.read(models)
        return models

    @field_validator("anonymous")
    @classmethod
    def _asked_for(cls, anonymous: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host")
        if host is not None and not anonymous and not _is_loopback(host):
            raise ValueError(f"must be true to listen on {host}: callers are not authenticated")
        return anonymous

    @property
    def max_message_bytes(self) -> int:
        """16 images and a mask, and room for the words."""
        return 17 * self.max_image_bytes + 1024 * 1024


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
