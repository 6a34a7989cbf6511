"""Bodies of KServe's V2 endpoint, bounded before they are validated.

KServe gives its endpoint to FastAPI with pydantic models, which describe every mistake of a body: two megabytes of
`{"inputs": [{}, {}, ...]}` became gigabytes of sentences. So the body is read here, and its parts are counted first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kserve.protocol.rest.v2_datamodels import InferenceRequest
from pydantic import ValidationError
from starlette.datastructures import Headers

from retrieval_core.errors import field_path
from retrieval_encoder_server.refusals import Malformed

BINARY_HEADER = "inference-header-content-length"  # of the protocol's binary extension, whose head KServe reads
# Tensors, outputs, dimensions and parameters in one place. This model has one tensor of one dimension.
MAX_PARTS = 16


def parse_inference(body: bytes, headers: Headers) -> InferenceRequest | bytes:
    """The request of a JSON body; one of the binary extension as it is. Raises Malformed."""
    if BINARY_HEADER in headers:
        return body
    try:
        document = json.loads(body)  # which takes lone surrogates; they are refused with their place
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error!s:.200}") from None
    if not isinstance(document, dict):
        raise Malformed(f"the body: found {type(document).__name__}, expected an object with inputs")
    for path, part in _parts(document):
        if isinstance(part, list | dict) and len(part) > MAX_PARTS:
            raise Malformed(f"{path}: found {len(part)} entries, expected at most {MAX_PARTS}")
    try:
        return InferenceRequest.model_validate(document)
    except ValidationError as error:
        mistakes = [f"{field_path(entry['loc'])}: {entry['msg']}" for entry in error.errors(include_url=False)[:5]]
        raise Malformed("; ".join(mistakes)) from None


def _parts(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Everything but the tensors' data, whose elements may be anything; the lists before what is in them."""
    yield "parameters", document.get("parameters")
    for name in ("inputs", "outputs"):
        entries = document.get(name)
        yield name, entries
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict):
                yield f"{name}[{index}].shape", entry.get("shape")
                yield f"{name}[{index}].parameters", entry.get("parameters")
