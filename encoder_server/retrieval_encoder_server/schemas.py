"""Bodies of requests and responses: their shape only. What features mean is checked in `features.py`.

A body with an unknown field is refused: a misspelt `exclude` that is silently ignored would show blocked items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval_core.dataset import MAX_ID_CHARS
from retrieval_core.errors import describe_invalid_fields
from retrieval_encoder_server.refusals import Malformed

# As in the paper (arXiv 2510.14223): 2000 candidates per request.
DEFAULT_K = 2000
# Bounds far above any real use; they keep one request from holding the search worker for seconds.
MAX_K = 100_000
MAX_EXCLUDED = 20_000
MAX_FILTER_ATTRIBUTES = 16
MAX_FILTER_VALUES = 1000
MAX_DIMENSION = 65_536

FeatureObject = dict[str, Any]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Dimension = Annotated[int, Field(ge=1, le=MAX_DIMENSION, strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Body = TypeVar("Body", bound=_Body)


@dataclass(frozen=True)
class FeaturesInput:
    """Features of one member (the query side) or item (the document side); `path` is where they stand in the body."""

    side: Literal["member", "item"]
    features: FeatureObject
    path: str


@dataclass(frozen=True)
class PromptInput:
    """A prompt that was rendered elsewhere."""

    prompt: str
    path: str


EmbeddingInput = FeaturesInput | PromptInput


class EmbeddingsRequest(_Body):
    """OpenAI's request; `user` is accepted for its clients and not used."""

    input: str | list[Any] | FeatureObject
    model: str | None = None
    dimensions: Dimension | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    def inputs(self) -> list[EmbeddingInput]:
        if isinstance(self.input, list):
            return parse_inputs(self.input, "input")
        return [parse_input(self.input, "input")]


class PredictRequest(_Body):
    """KServe V1."""

    instances: list[Any]
    dimensions: Dimension | None = None

    def inputs(self) -> list[EmbeddingInput]:
        return parse_inputs(self.instances, "instances")


class RetrieveRequest(_Body):
    """One of `embedding` (with the bundle it came from), `member` (features) or `member_id`."""

    embedding: Annotated[list[Number], Field(max_length=MAX_DIMENSION)] | None = None
    bundle_id: str | None = None
    member: FeatureObject | None = None
    member_id: Id | None = None
    k: int = Field(DEFAULT_K, ge=1, le=MAX_K, strict=True)
    exclude: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDED)
    filter: dict[str, Annotated[list[str], Field(max_length=MAX_FILTER_VALUES)]] | None = Field(
        None, max_length=MAX_FILTER_ATTRIBUTES
    )

    @model_validator(mode="after")
    def _has_one_query(self) -> RetrieveRequest:
        given = [name for name in ("embedding", "member", "member_id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'no query'}, expected one of embedding, member, member_id")
        if given == ["embedding"] and self.bundle_id is None:
            raise ValueError("embedding needs bundle_id, the bundle it was computed with")
        return self


def parse(model: type[Body], body: bytes | dict[str, Any]) -> Body:
    """Validate a JSON body. Raises Malformed with one sentence per wrong field."""
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        raise Malformed(summarise(error)) from None


def parse_inputs(values: list[Any], path: str) -> list[EmbeddingInput]:
    """The inputs of a list, each a string or {"member": ...} or {"item": ...}. Malformed names the first wrong one."""
    return [parse_input(value, f"{path}[{index}]") for index, value in enumerate(values)]


def summarise(error: ValidationError, limit: int = 5) -> str:
    """The first few wrong fields: a body with ten thousand mistakes does not get ten thousand sentences back."""
    sentences = describe_invalid_fields(error)
    more = [f"and {len(sentences) - limit} more"] if len(sentences) > limit else []
    return "; ".join([*sentences[:limit], *more])


def parse_input(value: Any, path: str) -> EmbeddingInput:
    match value:
        case str():
            return PromptInput(value, path)
        case {"member": dict(features), **others} if not others:
            return FeaturesInput("member", features, f"{path}.member")
        case {"item": dict(features), **others} if not others:
            return FeaturesInput("item", features, f"{path}.item")
    found = f"an object with {sorted(value)!r:.80}" if isinstance(value, dict) else f"{value!r:.80}"
    raise Malformed(f'{path}: found {found}, expected a string, {{"member": {{...}}}} or {{"item": {{...}}}}')
