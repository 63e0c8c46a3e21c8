"""Every picture says, for machines, that AI has edited it: in XMP, and signed (C2PA) where the operator can sign.

The mark is IPTC's Digital Source Type, which photo agencies, search engines and image software read.
"""

from __future__ import annotations

import logging
from importlib import metadata
from typing import TYPE_CHECKING

from .errors import NotSigned
from .watched import Watched

if TYPE_CHECKING:
    from retouch.v1 import image_edit_pb2 as pb

    from .images import Format
    from .manifests import Signer
    from .metrics import Metrics
    from .settings import Settings

log = logging.getLogger(__name__)

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
VERSION = metadata.version("retouch")
# Nothing of the request or the moment: the same edit is the same bytes.
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/">'
    f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    f"<xmp:CreatorTool>Retouch {VERSION}</xmp:CreatorTool>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()


class Provenance:
    """What the pictures of one server say of how they were made. Raises Unusable, of the operator's files.

    xmp: the packet that each carries; None: the operator wants none.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.xmp = XMP if settings.provenance else None
        self._signatures = metrics.signatures
        self._watched: Watched[Signer] | None = None
        if not settings.provenance:
            log.warning("results do not say that they are AI-edited: PROVENANCE is off")
        if settings.c2pa_cert and settings.c2pa_key:
            from . import manifests  # here, since few servers sign

            paths = [settings.c2pa_cert, settings.c2pa_key]
            watched = self._watched = Watched("c2pa", paths, manifests.make, metrics)
            metrics.certificate_expiry.labels("c2pa_cert").set_function(
                lambda: watched.value.expires
            )
            log.info("results are signed by %s", watched.value.name)

    @property
    def signs(self) -> bool:
        return self._watched is not None

    def parent(self, request: pb.EditRequest) -> bytes | None:
        """What signatures need of a request's first image: nothing, or all where it has a manifest. For the pool."""
        image = request.images[0]
        # The names of a manifest's first two boxes; they are never compressed.
        return image if b"jumb" in image and b"c2pa" in image else None

    def sign(self, data: bytes, format: Format, parent: bytes | None) -> bytes:
        """An encoded picture with a manifest that says that it was edited from `parent`; nothing may change it after.

        Where the operator has no credentials, as it is. For the pool. Raises NotSigned: it must not go out unsigned.
        """
        if self._watched is None:
            return data
        from .manifests import SigningError

        try:
            signed = self._watched.value.sign(data, format, parent)
        except SigningError as error:
            self._signatures.labels("failed").inc()
            log.error("a result cannot be signed: %s", error)
            raise NotSigned("the result could not be signed") from error
        self._signatures.labels("ok").inc()
        return signed

    async def renew_forever(self) -> None:
        """Take up what becomes of the operator's files."""
        if self._watched:
            async for signer in self._watched.changes():
                log.info("c2pa: the new files are in force: results are signed by %s", signer.name)
