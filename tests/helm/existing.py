"""What the chart takes as made by somebody else: Secrets with their keys, and a claim."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.signing import Studio

API_KEY = "rt_test-0123456789abcdef"
KEYS = f'[[keys]]\nid = "test"\nhash = "sha256:{hashlib.sha256(API_KEY.encode()).hexdigest()}"\n'
CLAIMS = {"weights"}


def signer(folder: Path) -> dict[str, bytes]:
    """Of who signs results."""
    signing = Studio(folder).issue()
    return {"tls.crt": signing.cert.read_bytes(), "tls.key": signing.key.read_bytes()}


def secrets(folder: Path) -> dict[str, dict[str, bytes]]:
    """The Secrets that the cases and examples name, as someone would have made them."""
    ca = Authority(folder)
    host = "*.images.svc.cluster.local"
    server, client = ca.issue("server", host), ca.issue("client")

    def pair(of: Any) -> dict[str, bytes]:
        made = {"tls.crt": of.cert, "tls.key": of.key, "ca.crt": ca.cert}
        return {name: path.read_bytes() for name, path in made.items()}

    return {
        "retouch-keys": {"keys.toml": KEYS.encode(), "test-key": API_KEY.encode()},
        "retouch-signing": {"signing-key": b"0123456789abcdef0123456789abcdef"},
        "retouch-store": {"AWS_ACCESS_KEY_ID": b"id", "AWS_SECRET_ACCESS_KEY": b"secret"},
        "retouch-redis": {"url": b"redis://:pass@redis.redis:6379"},
        "hub": {"token": b"hf_token"},
        "retouch-server-tls": pair(server),
        "retouch-gateway-tls": pair(client),
        "retouch-ingress": pair(server),
        "images-example-com": pair(server),
        "images-internal-example": pair(server),
        "retouch-c2pa": signer(folder),
        "registry": {".dockerconfigjson": b"{}"},
    }
