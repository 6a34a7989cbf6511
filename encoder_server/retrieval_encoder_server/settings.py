"""What a server is started with. Each setting is a flag and an environment variable of the same name (contract 9)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

BundleId = Annotated[str, StringConstraints(pattern=r"^b-[0-9a-f]{16}$")]
GenerationId = Annotated[str, StringConstraints(pattern=r"^g-[0-9a-f]{16}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Frozen; the description of a field is its help text on the command line."""

    # An empty variable is one that a manifest left unset.
    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    bundle_uri: str = Field(min_length=1, description="Where the bundle lies: a path or an fsspec URI.")
    generation_uri: str | None = Field(
        None, min_length=1, description="Where the serving index generation lies; without it /v1/retrieve answers 404."
    )
    expected_bundle_id: BundleId | None = Field(None, description="Refuse to start with another bundle (exit 65).")
    expected_generation_id: GenerationId | None = Field(
        None, description="Refuse to start with another index generation (exit 65)."
    )
    model_name: str = Field(
        "model",
        pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$",
        description="The model's name in URLs and bodies.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    # KServe's own server listens on 8081 unless told otherwise. Not here: an InferenceService exposes one port, and
    # servers on one machine would all want the same.
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port for KServe's V2 protocol over gRPC, for which KServe's own default is 8081; "
        "0 picks a free one; without it no gRPC.",
    )
    connection_age_seconds: Seconds = Field(
        60,
        description="A connection older than this (10 % jitter) ends with its next response. "
        "Over gRPC, not older than the drain, either.",
    )
    drain_seconds: float = Field(
        15,
        ge=0,
        le=3600,
        description="After TERM: keep answering for this long while clients learn to go elsewhere. "
        "Leave room for one request inside the pod's termination grace period.",
    )
    served_dimension: int | None = Field(
        None, ge=1, description="Width of the vectors served; default: the generation's, else the bundle's."
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Where the encoder computes.")
    max_body_bytes: int = Field(2 * 2**20, ge=1024, le=2**30, description="Largest request body; larger gets 413.")
    # A gut feeling: 128 bodies of the largest size, and far more of those that clients send.
    max_bodies_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        le=2**40,
        description="Most bytes of all bodies that are being received or answered; beyond it: 429. "
        "Over gRPC as many calls at once as it has room for messages of MAX_BODY_BYTES.",
    )
    # Gut feelings, to be replaced by measurements: one batch is about 30 member prompts; the queue holds eight batches.
    max_batch_tokens: int = Field(8192, ge=1, description="Most prompt tokens encoded in one batch.")
    max_queue_tokens: int = Field(65_536, ge=1, description="Most prompt tokens that may wait; beyond it: 429.")
    max_queue_searches: int = Field(256, ge=1, description="Most index searches that may wait; beyond it: 429.")
    max_inputs: int = Field(256, ge=1, description="Most prompts in one request; more get 413.")
    tokenizer_threads: int = Field(2, ge=1, le=64, description="Threads that render and tokenise prompts.")
    request_timeout_seconds: Seconds = Field(30, description="A request not answered within this gets 503.")
    stuck_after_seconds: Seconds = Field(
        60, description="/v2/health/live fails when a worker has not finished a step for this long."
    )

    @field_validator("grpc_port")
    @classmethod
    def _has_its_own_port(cls, grpc_port: int | None, info: ValidationInfo) -> int | None:
        if grpc_port and grpc_port == info.data.get("port"):
            raise ValueError(f"found {grpc_port}, which is PORT; expected another one")
        return grpc_port
