"""What can go wrong, as HTTP says it: one exception tree, one table from gRPC status to it.

Every failed request is answered `{"error": {"message", "type", "param", "code"}}`, where `code` is
the HTTP status as a number. Messages are public: never a path, an address or a traceback in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest as FieldErrors
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status
from starlette.responses import JSONResponse, Response

# A field and what is wrong with it; the field is None where no single one is to blame.
Violation = tuple[str | None, str]

# An edit that has begun may be what ended it, or end no sooner: no SDK should send it again by itself.
ONCE = {"x-should-retry": "false"}
MODERATION = ("retouch.v1", "MODERATION_BLOCKED")
# What is only for the moment: seconds.
SOON = {"retry-after": "1"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class GatewayError(Exception):
    """Base of all answers that are not an edit.

    GatewayError            500
    ├─ BadRequest           400  one or more fields break a rule
    ├─ ModerationBlocked    400  a safety check refused the edit, or what came of it
    ├─ Unauthorized         401  no API key, or none that is known
    │  └─ KeyExpired        401  one that was good until lately
    ├─ Forbidden            403  the key is known, and may not do this
    ├─ NotFound             404  no such model, image or path
    ├─ BodyTimeout          408  the body came too slowly
    ├─ Conflict             409  an edit with the same Idempotency-Key is under way
    ├─ Gone                 410  the image's URL has expired
    ├─ NotTheSame           412  the image is none of those in If-Match
    ├─ TooLarge             413  the body, or what it became for the upstream
    ├─ WrongContentType     415
    ├─ OutOfRange           416  no byte of the image is in the Range asked for
    ├─ KeyReused            422  the Idempotency-Key belongs to another request
    ├─ Busy                 429  the queue is full; says when to come back
    ├─ OverLimit            429  the key has used up what it may; says when to come back
    ├─ ClientGone           499  the caller hung up: seen by logs and metrics only
    ├─ BadUpstream          502  the upstream broke the contract
    ├─ UpstreamLost         502  the upstream went away in the middle of the edit
    ├─ Unavailable          503  no upstream is ready
    └─ OutOfTime            504  the request's budget is spent
    """

    status = 500
    kind: str | None = None  # `error.type`, where it is not that of the status
    default = "The edit failed. It was logged with this request's id."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or self.default
        self.param = param
        self.headers = dict(headers or {})
        super().__init__(self.message)


class BadRequest(GatewayError):
    status = 400
    default = "The request breaks a rule."

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> BadRequest:
        """All violations in the message, the first one's field as `param`."""
        message = "; ".join(f"{field}: {text}" if field else text for field, text in violations)
        return cls(message, param=_param(violations[0][0]))


class ModerationBlocked(GatewayError):
    """An answer like a result: the same edit would get it again."""

    status = 400
    kind = "moderation_blocked"
    default = "Your request was rejected by the safety system."


class Unauthorized(GatewayError):
    status = 401
    default = "An API key is needed, as Authorization: Bearer KEY or as x-api-key: KEY."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class KeyExpired(Unauthorized):
    """`when`, in UTC. `key_id` is for the log."""

    def __init__(self, key_id: str, when: datetime) -> None:
        self.key_id = key_id
        super().__init__(f"This API key expired at {when:%Y-%m-%d %H:%M:%S} UTC.")


class Forbidden(GatewayError):
    status = 403
    default = "This key may not do that."


class NotFound(GatewayError):
    status = 404
    default = "Not found."


class BodyTimeout(GatewayError):
    status = 408
    default = "The request's body came too slowly."


class Conflict(GatewayError):
    status = 409
    default = "An edit with this Idempotency-Key is under way; try again."


class Gone(GatewayError):
    status = 410
    default = "This image has expired."


class NotTheSame(GatewayError):
    status = 412
    default = "The image is none of those in If-Match."


class TooLarge(GatewayError):
    status = 413
    default = "The request is too large."


class WrongContentType(GatewayError):
    status = 415
    default = "Content-Type must be application/json or multipart/form-data."


class OutOfRange(GatewayError):
    status = 416
    default = "No byte of the image is in that range."


class KeyReused(GatewayError):
    status = 422
    default = "This Idempotency-Key was used for another request."


class Busy(GatewayError):
    status = 429
    default = "All slots are taken and the queue is full; try again later."


class OverLimit(GatewayError):
    status = 429
    default = "This key has used up what it may; try again later."


class ClientGone(GatewayError):
    status = 499
    default = "The client closed the connection."


class BadUpstream(GatewayError):
    status = 502
    default = "The edit service gave an answer that makes no sense here."


class UpstreamLost(BadUpstream):
    default = "The edit service went away in the middle of the edit."

    def __init__(self) -> None:
        super().__init__(headers=ONCE)


class Unavailable(GatewayError):
    status = 503
    default = "The edit service is not ready; try again."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers=SOON)


class OutOfTime(GatewayError):
    status = 504
    default = "The edit took longer than it may."

    def __init__(self) -> None:
        super().__init__(headers=ONCE)


# The table. UNAUTHENTICATED and PERMISSION_DENIED are about the gateway's own credentials, so the
# caller of the gateway cannot mend them: 502.
_BY_CODE: dict[grpc.StatusCode, type[GatewayError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.OUT_OF_RANGE: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,  # Busy, where RetryInfo says so
    grpc.StatusCode.CANCELLED: Unavailable,  # not by us: the server dropped it, as when it stops
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: OutOfTime,
    grpc.StatusCode.INTERNAL: GatewayError,
    grpc.StatusCode.UNKNOWN: GatewayError,
    grpc.StatusCode.DATA_LOSS: GatewayError,
    grpc.StatusCode.UNIMPLEMENTED: BadUpstream,
    grpc.StatusCode.ALREADY_EXISTS: BadUpstream,
    grpc.StatusCode.UNAUTHENTICATED: BadUpstream,
    grpc.StatusCode.PERMISSION_DENIED: BadUpstream,
}

_DETAILS: dict[grpc.StatusCode, type[RetryInfo | FieldErrors | ErrorInfo]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: RetryInfo,
    grpc.StatusCode.INVALID_ARGUMENT: FieldErrors,
    grpc.StatusCode.FAILED_PRECONDITION: ErrorInfo,
}


def from_rpc(error: grpc.aio.AioRpcError, *, accepted: bool = False) -> GatewayError:
    """What a failed call means to the caller of the gateway.

    INVALID_ARGUMENT keeps the server's own words, by field; anything unforeseen loses them.
    `accepted`: the server had taken the request, so that its failure is no invitation to try again.
    """
    details = _details(error)
    if isinstance(details, RetryInfo):
        seconds = details.retry_delay.seconds + details.retry_delay.nanos / 1e9
        return Busy(headers={"retry-after": str(min(60, max(1, math.ceil(seconds))))})
    if isinstance(details, FieldErrors) and details.field_violations:
        return BadRequest.of([(v.field, v.description) for v in details.field_violations])
    if isinstance(details, ErrorInfo) and (details.domain, details.reason) == MODERATION:
        return ModerationBlocked(error.details(), headers=ONCE)
    kind = _BY_CODE.get(error.code(), GatewayError)
    if kind is NotFound:
        return NotFound(error.details(), param="model")  # the only thing a call can fail to find
    if kind is BadRequest:
        return BadRequest(error.details())
    if kind is Unavailable and accepted:
        return UpstreamLost()
    failed = kind()
    failed.headers |= ONCE if accepted else {}
    return failed


def _details(error: grpc.aio.AioRpcError) -> RetryInfo | FieldErrors | ErrorInfo | None:
    """The first google.rpc detail we know, taken only from the status it belongs to."""
    wanted = _DETAILS.get(error.code())
    if not wanted:
        return None
    try:
        status = rpc_status.from_call(error)
        for packed in status.details if status else ():
            found = wanted()
            if packed.Unpack(found):
                return found
    except (DecodeError, ValueError):
        pass  # details that contradict or garble their status: the status alone is what we know
    return None


def _param(field: str | None) -> str | None:
    """A field of the contract as REST names it: `size.width` is part of `size`."""
    return (field or "").partition(".")[0] or None


def error_type(status: int) -> str:
    """`error.type` for an HTTP status."""
    return _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def envelope(
    status: int, message: str, param: str | None = None, kind: str | None = None
) -> dict[str, object]:
    """The body of every failed request. `kind`: its `type`, where it is not that of the status."""
    told = {"message": message, "type": kind or error_type(status), "param": param, "code": status}
    return {"error": told}


def error_body(error: GatewayError) -> dict[str, object]:
    """`error` in the envelope."""
    return envelope(error.status, error.message, error.param, error.kind)


def error_response(error: GatewayError) -> Response:
    """`error` as its HTTP answer."""
    return JSONResponse(error_body(error), error.status, error.headers)
