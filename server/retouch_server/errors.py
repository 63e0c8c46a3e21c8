"""What may go wrong with a request, each with its gRPC status and public message. One table maps them.

RequestError                 status, public message
├── InvalidRequest           INVALID_ARGUMENT, with the fields at fault
├── UnknownModel             NOT_FOUND
├── Blocked                  FAILED_PRECONDITION, by a safety check, with its category
├── Busy                     RESOURCE_EXHAUSTED, with when to come again
├── NotServing               UNAVAILABLE
├── OutOfTime                DEADLINE_EXCEEDED
├── CheckFailed              INTERNAL, a safety check gave no answer
├── NotSigned                INTERNAL, no signed manifest could be made for a result
└── ModelFailed              INTERNAL
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from .safety import Refusal

DOMAIN, MODERATION_BLOCKED = "retouch.v1", "MODERATION_BLOCKED"


@dataclass(frozen=True)
class Violation:
    """One field of the request, by the contract's name (`images[0]`, `size.width`), and what is wrong with it."""

    field: str
    description: str


class RequestError(Exception):
    """An answer that is not a picture. `details` are google.rpc messages that a client can read.

    `logged` is for the call's line in the log: nothing that a caller wrote.
    """

    status: grpc.StatusCode
    logged: Mapping[str, str] = {}

    def __init__(self, message: str, *details: Message) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def to_status(self) -> Any:
        """As the status that grpc sends, the details packed beside it."""
        status = status_pb2.Status(code=self.status.value[0], message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return rpc_status.to_status(status)


class InvalidRequest(RequestError):
    status = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation]) -> None:
        bad = BadRequest(
            field_violations=[
                BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in violations
            ]
        )
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), bad)
        self.violations = tuple(violations)


class UnknownModel(RequestError):
    status = grpc.StatusCode.NOT_FOUND


class Blocked(RequestError):
    """A safety check refused the request, or its results. `stage`: before or after. `check`: who it was."""

    status = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, refusal: Refusal, stage: str, check: str) -> None:
        info = ErrorInfo(
            reason=MODERATION_BLOCKED, domain=DOMAIN, metadata={"category": refusal.category}
        )
        words = f"Your request was rejected by the safety system. {refusal.reason}"
        super().__init__(words.rstrip(), info)
        self.logged = {"blocked": stage, "check": check, "category": refusal.category}


Bound = Literal["queue", "calls", "bytes"]
_FULL: Mapping[Bound, str] = {
    "queue": "the queue is full",
    "calls": "too many calls are under way",
    "bytes": "the requests under way have too many bytes together",
}


class Busy(RequestError):
    """One of the server's bounds is reached; come again in `retry_after` seconds."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, retry_after: float, bound: Bound = "queue") -> None:
        delay = Duration(seconds=math.ceil(retry_after))
        super().__init__(f"{_FULL[bound]}, try again later", RetryInfo(retry_delay=delay))
        self.bound = bound
        self.logged = {"bound": bound}


class NotServing(RequestError):
    status = grpc.StatusCode.UNAVAILABLE


class OutOfTime(RequestError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class NotSigned(RequestError):
    status = grpc.StatusCode.INTERNAL


class ModelFailed(RequestError):
    status = grpc.StatusCode.INTERNAL


class CheckFailed(RequestError):
    """A safety check gave no answer, so nobody knows. `stage`, `check`: as in Blocked."""

    status = grpc.StatusCode.INTERNAL

    def __init__(self, stage: str, check: str) -> None:
        super().__init__("the safety check failed")
        self.logged = {"failed": stage, "check": check}
