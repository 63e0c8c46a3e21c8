"""The certificates in use: read again when their files change, and when they expire, for alerts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc

from retouch_gateway import channels
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings
from retouch_gateway.upstream import Upstream
from retouch_gateway.watched import Watched

log = logging.getLogger(__name__)

FILES = "upstream_tls"  # what they are called together
LATE_SECONDS = 10.0


class Certificates:
    """What the gateway proves itself to servers by, and whom it trusts.

    `credentials`: as the files were at the start; None for plain text. Raises SettingsError.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        paths = [settings.upstream_ca, settings.upstream_cert, settings.upstream_key]
        self._watched = Watched(
            FILES,
            [path for path in paths if path],
            lambda *_: channels.credentials(settings),
            metrics,
        )
        self.credentials = self._watched.value
        tell(settings, metrics)

    async def renew_forever(self, upstream: Upstream) -> None:
        """Have `upstream` go over to what becomes of the files. A newer one ends the wait for one that is not taken."""
        renewing: asyncio.Task[None] | None = None
        try:
            async for credentials in self._watched.changes():
                if renewing:
                    renewing.cancel()
                self._watched.late(True)  # until the servers take them
                renewing = asyncio.create_task(self._renew(upstream, credentials))
        finally:
            if renewing:
                renewing.cancel()

    async def _renew(self, upstream: Upstream, credentials: grpc.ChannelCredentials | None) -> None:
        late = asyncio.get_running_loop().call_later(
            LATE_SECONDS,
            log.error,
            "upstream_tls: no connection by the new files yet; those of before are in force",
        )
        try:
            await upstream.renew(credentials)
        except Exception:
            log.exception("upstream_tls: the new files are not in force")
            return
        finally:
            late.cancel()
        tell(self._settings, self._metrics)
        self._watched.late(False)
        log.info("upstream_tls: the new files are in force")


def tell(settings: Settings, metrics: Metrics) -> None:
    """Set the expiry of each file of certificates that is in use.

    Of a chain the first to expire counts: it breaks there. Of authorities the last: old ones may
    lie beside new.
    """
    for name, path, which in (
        ("upstream_cert", settings.upstream_cert, min),
        ("upstream_ca", settings.upstream_ca, max),
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
    from cryptography import x509  # here, since few gateways need it, and it is large

    return [
        each.not_valid_after_utc.timestamp()
        for each in x509.load_pem_x509_certificates(path.read_bytes())
    ]
