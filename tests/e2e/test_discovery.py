"""What a caller can find out: whether the tiers serve, and what."""

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from retouch.v1.image_edit_pb2 import ListModelsRequest
from tests.e2e.conftest import Tiers

SERVICE = "retouch.v1.ImageEdit"


def test_health(tiers: Tiers) -> None:
    health = health_pb2_grpc.HealthStub(tiers.channel)
    for name in ("", SERVICE):
        reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert tiers.rest.get("/healthz").status_code == 200
    assert tiers.rest.get("/readyz").status_code == 200


def test_reflection(tiers: Tiers) -> None:
    database = ProtoReflectionDescriptorDatabase(tiers.channel)
    assert SERVICE in database.get_services()
    assert "EditRequest" in [
        message.name for message in database.FindFileContainingSymbol(SERVICE).message_type
    ]


def test_models(tiers: Tiers) -> None:
    (served,) = tiers.grpc.ListModels(ListModelsRequest(), timeout=5).models
    assert served.id == "pocket"
    listed = tiers.rest.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("pocket", "model", "retouch")
    assert model["created"] == served.created
    assert model["defaults"]["num_inference_steps"] == served.defaults.num_inference_steps
    assert model["examples"] == list(served.examples)
    assert model["limits"]["max_image_bytes"] == served.limits.max_image_bytes == 4 * 2**20
    assert tiers.rest.get("/v1/models/pocket").json() == model
