"""The gateway that a command talks to: where it is, who asks, and for how long."""

import argparse
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from retouch_cli.errors import WrongCommandLine
from retouch_cli.photos import read_text

DEFAULT_URL = "http://localhost:8000"
URL, KEY = "RETOUCH_URL", "RETOUCH_API_KEY"

ENVIRONMENT = """\
environment:
  RETOUCH_URL                the gateway's address, as --url
  RETOUCH_API_KEY            the API key, where the gateway wants one
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY
                             the way to a gateway that is not on this machine
  SSL_CERT_FILE, SSL_CERT_DIR
                             whom to trust for its certificate
"""


@dataclass(frozen=True)
class Gateway:
    """`url` without a slash at its end; `key` None where there is none; `seconds` a command may take in all.

    `here`: on this machine, where no proxy leads.
    """

    url: str
    key: str | None
    seconds: float
    here: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Gateway":
        """Raises WrongCommandLine where an address or a key cannot be one, Failure where its file cannot be read."""
        url, where = arguments.url, "--url"
        if url is None:
            url, where = environment.get(URL) or DEFAULT_URL, URL
        key, whence = environment.get(KEY, ""), KEY
        if arguments.key_file is not None:
            key, whence = read_text(arguments.key_file).strip(), arguments.key_file
            if not key:
                raise WrongCommandLine(f"--key-file: {whence} is empty")
        url = address(url, where)
        return cls(url, usable_key(key, whence), arguments.timeout, is_loopback(url))

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


def add_to(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options of every command that talks to a gateway; `seconds`: how long it may take by default."""
    group = parser.add_argument_group("gateway")
    group.add_argument("--url", help=f"its address ({URL}, else {DEFAULT_URL})")
    group.add_argument(
        "--key-file",
        metavar="FILE",
        help=f"a file with the API key in it ({KEY} holds the key itself); the key is no option, "
        "for others on this machine can see a command line",
    )
    group.add_argument(
        "--timeout",
        type=duration,
        default=seconds,
        metavar="SECONDS",
        help="how long it may take in all, the wait for a busy gateway too (%(default)g)",
    )


def address(url: str, where: str) -> str:
    """An address as its user writes it, maybe with the `/v1` that OpenAI's clients want. Raises WrongCommandLine."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and httpx.URL(url).host and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good or not re.fullmatch(r"[!-~]+", url):
        raise WrongCommandLine(f"{where}: must be such as {DEFAULT_URL}, with http:// or https://")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise WrongCommandLine(f"{where}: must be an address alone, without user, ? or #")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def usable_key(key: str, whence: str) -> str | None:
    """None for an empty one. Raises WrongCommandLine where it cannot go into a header."""
    if not re.fullmatch(r"[!-~]*", key):
        raise WrongCommandLine(f"{whence}: a key is of printable ASCII, without blanks")
    return key or None


def duration(text: str) -> float:
    """Seconds, as an option's value has them."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return seconds
