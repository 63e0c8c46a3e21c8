"""Signed manifests (C2PA, https://spec.c2pa.org): who edited a picture, how, and what its own manifest said before.

Nothing here asks the network. `c2pa`, an extra, is imported when a certificate is configured.
"""

from __future__ import annotations

import io
import logging
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from . import identity, jumbf
from .identity import PURPOSES, Identity
from .provenance import SOURCE_TYPE, VERSION
from .watched import Contents, Unusable

if TYPE_CHECKING:
    from c2pa import Context

    from .images import Format

log = logging.getLogger(__name__)

MIME: dict[Format, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
# Of an input's manifests: what happened to it, who says so, and what may be done with it. All else is redacted: places,
# times and names of EXIF and IPTC, and thumbnails, which show what an edit may have been meant to remove.
KEPT = (
    "c2pa.actions",
    "c2pa.hash.",
    "c2pa.icon",  # which a claim refers to: redacted, the manifest would not be valid
    "c2pa.ingredient",
    "c2pa.soft-binding",
    "c2pa.time-stamp",
    "c2pa.certificate-status",
    "c2pa.training-mining",
    "cawg.training-mining",
    "cawg.identity",
)
# Beyond these a parent's manifests are not kept: the library takes a millisecond for an ingredient, 0.12 s for a MiB.
MAX_ASSERTIONS, MAX_KEPT_BYTES = 128, 2**19
PARENT = "parent"


class SigningError(Exception):
    """A picture could not be signed; the message holds nothing of the caller's."""


class Signer:
    """Signs pictures as one identity. Thread-safe. Raises Unusable where the library takes it for none."""

    def __init__(self, identity: Identity) -> None:
        self.name, self.expires = identity.name, identity.expires
        self._context = _context(identity)
        self._careful = _context(identity, verify_after_sign=True)
        self._try()

    def sign(self, data: bytes, format: Format, parent: bytes | None) -> bytes:
        """The encoded picture `data` with a manifest that says what it was edited from.

        `parent`: the input as it came, whose manifests are to be kept; None where it has none. Raises SigningError.
        """
        from c2pa import C2paError

        if parent is not None:
            try:
                return self._keeping(parent, data, format)
            except Exception as error:
                # Whatever is wrong with a manifest that came in is no reason to fail; nor are its words for our log.
                log.info("an input's manifest is not kept: %s", type(error).__name__)
        try:
            return _sign(self._context, data, format)
        except C2paError as error:
            raise SigningError(str(error)) from error

    def _keeping(self, parent: bytes, data: bytes, format: Format) -> bytes:
        """As `sign`, with the manifests of `parent`. Raises what is wrong with them.

        What strangers' bytes can make of a result is looked at once more: whether it is valid (by the library), and
        whether nothing went on that is not to, where the library and `jumbf` differ in what they find in an input.
        """
        signed = _sign(self._careful, data, format, parent, _redactions(parent))
        if _redactions(signed):
            raise SigningError("what is not to go on did")
        return signed

    def _try(self) -> None:
        """Sign a picture and verify that, for all that the library alone knows of certificates."""
        from c2pa import C2paError

        out = io.BytesIO()
        Image.new("RGB", (1, 1)).save(out, "PNG")
        try:
            _sign(self._careful, out.getvalue(), "PNG")
        except C2paError as error:
            raise Unusable([f"cannot sign with C2PA_CERT: {error}"]) from error


def make(chain: Contents, key: Contents) -> Signer:
    """A signer of what two files hold. Raises Unusable."""
    return Signer(identity.read(chain, key))


def _context(identity: Identity, **verify: bool) -> Context:
    """The library, set up to sign; nothing is fetched: no manifest, no revocation, no time."""
    from c2pa import C2paError, C2paSignerInfo, Signer
    from c2pa import Context as NewContext

    settings = {
        "version": 1,
        "trust": {"trust_config": "\n".join(PURPOSES)},
        "core": {"allowed_network_hosts": [], "max_decompressed_manifest_size_in_mb": 8},
        "verify": {
            "verify_after_reading": True,
            "verify_after_sign": False,
            "verify_trust": False,  # whom to trust is for who reads the result
            "verify_timestamp_trust": False,
            "ocsp_fetch": False,
            "remote_manifest_fetch": False,
            **verify,
        },
        "builder": {
            "thumbnail": {"enabled": False},
            "created_assertion_labels": ["c2pa.actions", "c2pa.ingredient"],
        },
    }
    try:
        signer = Signer.from_info(
            C2paSignerInfo(identity.algorithm, identity.chain, identity.key, None)
        )
        return NewContext.from_dict(settings, signer=signer)
    except C2paError as error:
        raise Unusable([f"cannot sign with C2PA_CERT: {error}"]) from error


def _sign(
    context: Context,
    data: bytes,
    format: Format,
    parent: bytes | None = None,
    redactions: Sequence[str] = (),
) -> bytes:
    from c2pa import Builder

    about = {"title": "input", "relationship": "parentOf", "label": PARENT}
    # Its own: the input's would be one of its metadata.
    about["instance_id"] = f"xmp:iid:{uuid.uuid4()}"
    manifest = _manifest(redactions)
    if parent is None:
        manifest["ingredients"] = [about]
    signed = io.BytesIO()
    with Builder(manifest, context) as builder:
        if parent is not None:
            builder.add_ingredient(about, _mime(parent), io.BytesIO(parent))
        builder.sign(MIME[format], io.BytesIO(data), signed)
    return signed.getvalue()


def _manifest(redactions: Sequence[str]) -> dict[str, Any]:
    agent = {"name": "Retouch", "version": VERSION}
    actions: list[dict[str, Any]] = [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}},
        {"action": "c2pa.edited", "softwareAgent": agent, "digitalSourceType": SOURCE_TYPE},
    ]
    actions += (
        {
            "action": "c2pa.redacted",
            "reason": "c2pa.PII.present",
            "parameters": {"redacted": each},
        }
        for each in redactions
    )
    return {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        "redactions": list(redactions),
    }


def _redactions(picture: bytes) -> list[str]:
    """What of the manifests of `picture` is not to go on, as JUMBF URIs. Raises Unreadable and SigningError."""
    boxes = jumbf.boxes(picture)
    assertions = [box for box in boxes if len(box.path) == jumbf.DEPTH]
    gone = [box for box in assertions if not _kept(box.path)]
    kept = boxes[0].size - sum(box.size for box in gone)
    if len(assertions) > MAX_ASSERTIONS or kept > MAX_KEPT_BYTES:
        raise SigningError("its manifests are too much")
    return [f"self#jumbf=/{'/'.join(box.path)}" for box in gone]


def _kept(path: Sequence[str]) -> bool:
    """Beside its assertions a manifest may have data boxes and credentials (C2PA 1.x)."""
    *_, store, label = path
    return store == "c2pa.assertions" and label.startswith(KEPT)


def _mime(picture: bytes) -> str:
    """Of what was decoded as one of the three."""
    if picture.startswith(b"\x89PNG"):
        return MIME["PNG"]
    return MIME["JPEG"] if picture.startswith(b"\xff\xd8") else MIME["WEBP"]
