"""What may go wrong with a request, each with its gRPC status and public message. One table maps them.

RequestError                 status, public message
├── InvalidRequest           INVALID_ARGUMENT, with the fields at fault
├── UnknownModel             NOT_FOUND
├── Refused                  FAILED_PRECONDITION, by the model's safety checker
├── Busy                     RESOURCE_EXHAUSTED, with when to come again
├── NotServing               UNAVAILABLE
├── OutOfTime                DEADLINE_EXCEEDED
└── ModelFailed              INTERNAL
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status


@dataclass(frozen=True)
class Violation:
    """One field of the request, by the contract's name (`images[0]`, `size.width`), and what is wrong with it."""

    field: str
    description: str


class RequestError(Exception):
    """An answer that is not a picture. `details` are google.rpc messages that a client can read."""

    status: grpc.StatusCode

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


class Refused(RequestError):
    status = grpc.StatusCode.FAILED_PRECONDITION


class Busy(RequestError):
    """The queue is full; come again in `retry_after` seconds."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, retry_after: float) -> None:
        delay = Duration(seconds=math.ceil(retry_after))
        super().__init__("the queue is full, try again later", RetryInfo(retry_delay=delay))


class NotServing(RequestError):
    status = grpc.StatusCode.UNAVAILABLE


class OutOfTime(RequestError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class ModelFailed(RequestError):
    status = grpc.StatusCode.INTERNAL
