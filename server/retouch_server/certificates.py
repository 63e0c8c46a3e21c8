"""When the certificates in use expire, for alerts. They are read at start, so a file renewed since changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from .metrics import Metrics
from .settings import Settings

log = logging.getLogger(__name__)


def tell(settings: Settings, metrics: Metrics) -> None:
    """Set the expiry of each file of certificates that is in use.

    Of a chain the first to expire counts: it breaks there. Of authorities the last: old ones may lie beside new.
    """
    for name, path, which in (
        ("tls_cert", settings.tls_cert, min),
        ("tls_client_ca", settings.tls_client_ca, max),
    ):
        if not path:
            continue
        try:
            when = which(_expiries(path))
        except ValueError as error:  # OpenSSL takes more than is well-formed
            log.warning("%s: when it expires cannot be read: %s", name, error)
        else:
            metrics.certificate_expiry.labels(name).set(when)


def _expiries(path: Path) -> list[float]:
    """The Unix times at which a PEM file's certificates expire. Raises ValueError."""
    from cryptography import x509  # here, since few servers speak TLS themselves, and it is large

    return [
        each.not_valid_after_utc.timestamp()
        for each in x509.load_pem_x509_certificates(path.read_bytes())
    ]
