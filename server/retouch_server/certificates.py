"""The certificates in use: read again when their files change, and when they expire, for alerts."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

import grpc

from .metrics import Metrics
from .settings import PREFIX, Settings, check_authority, check_pair
from .watched import Contents, Unusable, Watched

log = logging.getLogger(__name__)


class Certificates:
    """What the server proves itself by, and whose callers it answers.

    `credentials`: for the port, None for plain text; each new connection is by what is then in force. A connection that
    is open stays so, for MAX_CONNECTION_AGE at most.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._new = deque[grpc.ServerCertificateConfiguration](maxlen=1)
        self.credentials: grpc.ServerCredentials | None = None
        paths = [settings.tls_cert, settings.tls_key, settings.tls_client_ca]
        self._watched = Watched("tls", [path for path in paths if path], self._read, metrics)
        if self._watched.value:
            self.credentials = grpc.dynamic_ssl_server_credentials(
                self._watched.value,
                self._fetch,  # type: ignore[arg-type]  # which may say None
                bool(settings.tls_client_ca),
            )
        tell(settings, metrics)

    async def renew_forever(self) -> None:
        """Take up what becomes of the files."""
        async for configuration in self._watched.changes():
            if configuration:
                self._new.append(configuration)
            tell(self._settings, self._metrics)
            log.info("tls: the new files are in force")

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new. gRPC asks at each connection, on threads of its own."""
        try:
            return self._new.pop()
        except IndexError:
            return None

    def _read(self, *_: Contents) -> grpc.ServerCertificateConfiguration | None:
        """What the settings' files hold. Raises Unusable."""
        settings = self._settings
        cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
        if not (cert and key):
            return None
        about = "TLS_KEY"
        try:
            check_pair(cert, key)
            about = "TLS_CLIENT_CA"
            if ca:
                check_authority(ca)
            about = "TLS_CERT"
            # A server that starts has none that is better.
            if self.credentials and min(_expiries(cert)) <= time.time():
                raise ValueError("has expired")
            return grpc.ssl_server_certificate_configuration(
                [(key.read_bytes(), cert.read_bytes())], ca.read_bytes() if ca else None
            )
        except (ValueError, OSError) as error:
            raise Unusable([f"{PREFIX}{about}: {error}"]) from None


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
        except (ValueError, OSError) as error:  # OpenSSL takes more than is well-formed
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
