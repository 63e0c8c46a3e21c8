"""How the gateway reaches its servers: channel options, TLS, and what gRPC itself balances and retries."""

from __future__ import annotations

import json
import ssl
from typing import NoReturn

import grpc

from retouch_gateway.settings import PREFIX, Settings, SettingsError

SERVICE = "retouch.v1.ImageEdit"
# Ten 50-megapixel answers never come at once; ten of a few megapixels do.
RECEIVE_BYTES = 512 * 2**20

# Retried is UNAVAILABLE alone, which the contract gives only before work has started. A server that answers NOT_SERVING
# is left out until it serves again. ListModels is asked again anyway, and must not use up the edits' retries.
SERVICE_CONFIG = {
    # A new connection's reports count after this period. By default it is 10 s, of each MAX_CONNECTION_AGE.
    "loadBalancingConfig": [
        {"weighted_round_robin": {"blackoutPeriod": "1s"}},
        {"round_robin": {}},
    ],
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [
        {
            "name": [{"service": SERVICE, "method": name} for name in ("Edit", "StreamEdit")],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Retries stop at half of the tokens. A server that dies takes one for each edit that it had, begun or queued, some
    # seventy; an edit that ends well gives one back. With fewer, and slow edits, none would be retried for minutes.
    "retryThrottling": {"maxTokens": 200, "tokenRatio": 1},
}


def channel(
    target: str, credentials: grpc.ChannelCredentials | None, send_bytes: int
) -> grpc.aio.Channel:
    """A channel to `target`, for as long as its credentials are in force; without any in plain text."""
    given = options(send_bytes)
    if credentials:
        return grpc.aio.secure_channel(target, credentials, given)
    return grpc.aio.insecure_channel(target, given)


def options(send_bytes: int) -> list[tuple[str, str | int]]:
    """What gRPC is told of such a channel; `send_bytes`: the largest request."""
    return [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_send_message_length", send_bytes),
        ("grpc.max_receive_message_length", RECEIVE_BYTES),
        # A call is kept for retries only while it fits this buffer: 256 KiB unless told.
        ("grpc.per_rpc_retry_buffer_size", send_bytes),
        # A server that stands still is given up after 40 s, however idle the line was before (measured; by default 90).
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that comes back is found within two seconds, one that hangs is given up in five.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A name is asked again when a server goes, and by default not within 30 s of the last time: where two go one
        # after the other, those that came in their places would not be known.
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),
        # The upstream is a neighbour, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
    ]


def credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """How to prove oneself to the servers, and whom to trust; None for plain text.

    Raises SettingsError where a PEM file cannot be read or makes no sense.
    """
    ca, cert, key = settings.upstream_ca, settings.upstream_cert, settings.upstream_key
    if not (settings.upstream_tls or ca or cert):
        return None
    # gRPC takes any bytes, and says no more than that connections fail.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = private = chain = None
    if ca:
        try:
            context.load_verify_locations(ca)
            roots = ca.read_bytes()
        except OSError as error:  # ssl.SSLError is one
            _refuse("UPSTREAM_CA", "holds no PEM certificate", error)
    if cert and key:
        try:
            context.load_cert_chain(cert, key, password="")
            private, chain = key.read_bytes(), cert.read_bytes()
        except OSError as error:
            _refuse("UPSTREAM_KEY", "is not the PEM key of UPSTREAM_CERT", error)
    return grpc.ssl_channel_credentials(roots, private, chain)


def _refuse(variable: str, words: str, error: OSError) -> NoReturn:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    said = f": {reason.lower().replace('_', ' ')}" if reason else ""
    raise SettingsError([f"{PREFIX}{variable}: {words}{said}"]) from None
