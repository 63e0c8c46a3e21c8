"""API keys of callers that have names, and the gateway's file of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def secret(caller: str) -> str:
    return f"rt_key-of-{caller}-for-tests-alone"


def keys_of(callers: Mapping[str, str]) -> str:
    """The file of keys of these callers, with more lines of each."""
    entries = []
    for caller, more in callers.items():
        digest = hashlib.sha256(secret(caller).encode()).hexdigest()
        entries.append(f'[[keys]]\nid = "{caller}"\nhash = "sha256:{digest}"\n{more}\n')
    return "\n".join(entries)
