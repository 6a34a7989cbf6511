"""The KServe predictor: V1 and V2 inference of the one model this server has, on top of `Service`.

KServe's plain `Model` and `DataPlane` are used as they are, with five methods of the data plane replaced: its own
`live` and `ready` answer without looking, its `model_ready` would refuse requests while the server drains, its `decode`
lets malformed bodies through as internal errors, and its `metadata` names what this server does not do.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelRepository
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.protocol.dataplane import DataPlane

from retrieval_encoder_server.lifecycle import Lifecycle
from retrieval_encoder_server.refusals import Malformed, NotServed, Refused, Unavailable
from retrieval_encoder_server.schemas import EmbeddingInput, PredictRequest, PromptInput, parse, parse_inputs
from retrieval_encoder_server.service import Service

# V2 tensors carry no objects, so features travel as JSON texts; the name of the tensor says what its elements are.
PROMPTS, MEMBERS, ITEMS = "prompts", "members", "items"
OUTPUT = "embeddings"

# KServe's own errors, in our terms.
KSERVE_ERRORS: Mapping[type[Exception], type[Refused]] = {
    InvalidInput: Malformed,
    NotImplementedError: NotServed,
    ModelNotFound: NotServed,
    ModelNotReady: Unavailable,
    ServerNotReady: Unavailable,
    ServerNotLive: Unavailable,
}


def as_refusal(error: Exception) -> Refused | None:
    """`error`, a Refused or one of KSERVE_ERRORS, as a Refused; None for any other, which is a defect."""
    if isinstance(error, Refused):
        return error
    return next((refusal(str(error)) for kind, refusal in KSERVE_ERRORS.items() if isinstance(error, kind)), None)


class EncoderModel(Model):  # type: ignore[misc]  # untyped library
    """Embeds what `/v1/embeddings` embeds."""

    def __init__(self, name: str, service: Service) -> None:
        super().__init__(name)
        self._service = service
        self.ready = True  # it is made from an engine that has passed its self-test

    async def predict(
        self,
        payload: dict[str, Any] | bytes | InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """V1: `{"instances": [...]}` -> `{"predictions": [[float]]}`. V2: one BYTES tensor -> an FP32 one [n, d]."""
        if isinstance(payload, InferRequest):
            embedded = await self._service.embed(inputs_of_tensor(payload))
            return self._tensor_response(payload, embedded.vectors)
        # KServe hands over the bytes when the content type is not exactly application/json.
        request = parse(PredictRequest, payload)
        embedded = await self._service.embed(request.inputs(), request.dimensions)
        return {"predictions": embedded.vectors.tolist()}

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in (PROMPTS, MEMBERS, ITEMS)]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, self._service.ids.dimension]}]

    def _tensor_response(self, request: InferRequest, vectors: np.ndarray) -> InferResponse:
        output = InferOutput(name=OUTPUT, shape=list(vectors.shape), datatype="FP32")
        output.set_data_from_numpy(vectors, binary_data=bool(request.use_binary_outputs))
        ids = self._service.ids
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=[output],
            parameters={"bundle_id": ids.bundle_id, "generation_id": ids.generation_id or ""},
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


class ServerDataPlane(DataPlane):  # type: ignore[misc]  # untyped library
    """KServe's data plane with health that is looked up, not assumed."""

    def __init__(self, model: EncoderModel, service: Service, lifecycle: Lifecycle) -> None:
        repository = ModelRepository()
        repository.update(model)
        super().__init__(repository)
        self._service = service
        self._lifecycle = lifecycle

    def metadata(self) -> dict[str, Any]:
        """KServe names the model repository extension, which is not served here; tensors in binary are."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}

    async def live(self) -> dict[str, str]:
        return {"status": "alive" if await self._service.is_live() else "stuck"}

    def decode(self, *arguments: Any, **named: Any) -> Any:
        """KServe's parsing, where whatever goes wrong is the body's fault: it meets some of it with bare errors."""
        try:
            return super().decode(*arguments, **named)
        except InvalidInput:
            raise
        except Exception as error:
            raise Malformed(f"the body is not an inference request: {error!s:.200}") from error

    async def ready(self) -> bool:
        return not self._lifecycle.is_draining and await self._service.is_live()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """KServe asks with the second argument before each inference, and those are answered while draining."""
        if self.model_registry.get_model(model_name) is None:
            raise NotServed(f"model {model_name:.80} is not served here; this server has {self._names()}")
        return True if disable_predictor_health_check else await self.ready()

    def _names(self) -> str:
        return ", ".join(self.model_registry.get_models())


def inputs_of_tensor(request: InferRequest) -> list[EmbeddingInput]:
    """The inputs of a V2 request. Malformed unless it is exactly one BYTES tensor with a known name."""
    if len(request.inputs) != 1:
        raise Malformed(f"inputs: found {len(request.inputs)} tensors, expected one of {PROMPTS}, {MEMBERS}, {ITEMS}")
    tensor = request.inputs[0]
    path = f"inputs.{tensor.name:.80}"
    if tensor.datatype != "BYTES":
        raise Malformed(f"{path}: found datatype {tensor.datatype:.20}, expected BYTES")
    texts = _texts(tensor, path)
    if tensor.name == PROMPTS:
        return [PromptInput(text, f"{path}[{index}]") for index, text in enumerate(texts)]
    side = {MEMBERS: "member", ITEMS: "item"}.get(tensor.name)
    if side is None:
        raise Malformed(f"{path}: unknown tensor, expected {PROMPTS}, {MEMBERS} or {ITEMS}")
    return parse_inputs([{side: _json(text, f"{path}[{index}]")} for index, text in enumerate(texts)], path)


def _texts(tensor: InferInput, path: str) -> list[str]:
    """Elements are str from JSON and bytes from the binary extension or gRPC."""
    try:
        elements = tensor.as_numpy().ravel().tolist()
        texts = [element.decode() if isinstance(element, bytes) else element for element in elements]
    except UnicodeDecodeError:
        raise Malformed(f"{path}: an element is not UTF-8") from None
    except struct.error:
        raise Malformed(f"{path}: its binary data ends before its last element does") from None
    except (TypeError, ValueError):  # KServe checks the shape in a JSON body only
        raise Malformed(f"{path}: its data does not have the shape {tensor.shape!r:.80}") from None
    if not all(isinstance(text, str) for text in texts):
        raise Malformed(f"{path}: an element is not a string")
    return texts


def _json(text: str, path: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Malformed(f"{path}: not JSON; an element is the text of one feature object") from None
