"""A server that answers at once, with the picture it got, behind real gRPC: `python -m bench.gateway.upstream PORT`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bench.gateway.bodies import MODEL
from retouch.v1 import image_edit_pb2 as pb
from retouch.v1 import image_edit_pb2_grpc

SERVICE = "retouch.v1.ImageEdit"
SIZES = [("grpc.max_receive_message_length", 2**27), ("grpc.max_send_message_length", 2**27)]


class Echo(image_edit_pb2_grpc.ImageEditServicer):
    def Edit(self, request: pb.EditRequest, _context: Any) -> pb.EditResponse:
        image = pb.EditedImage(
            data=request.images[0],
            format=pb.OutputFormat.OUTPUT_FORMAT_PNG,
            revised_prompt=request.prompt,
        )
        usage = pb.Usage(input_images=len(request.images), output_images=1, steps=1)
        return pb.EditResponse(images=[image], usage=usage, model=MODEL)

    def StreamEdit(self, request: pb.EditRequest, context: Any) -> Iterator[pb.EditEvent]:
        yield pb.EditEvent(queued=pb.Queued())
        yield pb.EditEvent(result=self.Edit(request, context))

    def ListModels(self, _request: pb.ListModelsRequest, _context: Any) -> pb.ListModelsResponse:
        limits = pb.Limits(max_images=16, size_multiple=1, max_pixels=2**24, max_image_bytes=2**22)
        return pb.ListModelsResponse(models=[pb.Model(id=MODEL, pipeline="Echo", limits=limits)])


def serve(port: int) -> None:
    # Threads: with grpc.aio a call of 1.6 MB there and back takes twice as long, which would be measured.
    server = grpc.server(ThreadPoolExecutor(16), options=SIZES)
    image_edit_pb2_grpc.add_ImageEditServicer_to_server(Echo(), server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
