"""Messages that are none: INVALID_ARGUMENT, of every method."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from .access import Context

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Parse: TypeAlias = Callable[[bytes], Any]


class Parsing(grpc.aio.ServerInterceptor):
    """Takes messages as bytes and parses them itself: grpc.aio would log a traceback of each that is none, as UNKNOWN.

    What takes bytes anyway it leaves alone.
    """

    async def intercept_service(
        self, continuation: Find, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if not handler or not handler.request_deserializer:
            return handler
        parse, answer = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _one(parse, handler.unary_unary), None, answer
            )
        if handler.unary_stream:
            work = handler.unary_stream
            each = _several if inspect.isasyncgenfunction(work) else _one
            return grpc.unary_stream_rpc_method_handler(each(parse, work), None, answer)
        if handler.stream_stream:
            stream = _stream(parse, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(stream, None, answer)
        return handler


def _one(parse: Parse, work: Any) -> Any:
    async def call(data: bytes, context: Context) -> Any:
        return await work(await _parsed(parse, data, context), context)

    return call


def _several(parse: Parse, work: Any) -> Any:
    async def call(data: bytes, context: Context) -> AsyncIterator[Any]:
        async for answer in work(await _parsed(parse, data, context), context):
            yield answer

    return call


def _stream(parse: Parse, work: Any) -> Any:
    async def call(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async def requests() -> AsyncIterator[Any]:
            async for data in messages:
                yield await _parsed(parse, data, context)

        async for answer in work(requests(), context):
            yield answer

    return call


async def _parsed(parse: Parse, data: bytes, context: Context) -> Any:
    try:
        return parse(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read")
