"""Which program serves a stack, and what tells it which stack it is. Where it listens is the adapters' business."""

from __future__ import annotations

from retrieval_operator.api.status import StackRecord

SERVER = "retrieval-encoder-server"


def server_environment(name: str, record: StackRecord) -> dict[str, str]:
    """What decides which stack a server is (docs/contracts.md section 9). A function of the record alone."""
    environment = {
        "BUNDLE_URI": record.bundle_uri,
        "GENERATION_URI": record.generation_uri,
        "EXPECTED_BUNDLE_ID": record.bundle_id,
        "EXPECTED_GENERATION_ID": record.generation_id,
        "MODEL_NAME": name,
    }
    age = record.serving.get("connectionAgeSeconds")
    return environment | ({"CONNECTION_AGE_SECONDS": str(age)} if age is not None else {})
