"""The object as a whole: metadata, spec, status; and reading it from YAML with errors a person can act on."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from retrieval_operator.api.constants import API_VERSION, GROUP, KIND, REQUEST_MAX_CHARS
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.api.types import Name, Time

# What only a calendar and a list of time zones can check; a definition lets mistakes through. Nothing else of an object
# depends on it.
_TIMES = (("data", "schedule"), ("data", "timeZone"), ("index", "refresh", "schedule"))


class InvalidManifest(ValueError):
    """The manifest cannot be used. `problems` are sentences, each with the field's path as in the YAML."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


def _with_short_requests(annotations: dict[str, str]) -> dict[str, str]:
    """A request ends up in the status, and the API server cannot bound annotations: a digest stands for a long one.

    Refusing it would stop the care for what serves; a digest is still another one for each other text.
    """
    return {key: _short(value) if key.startswith(f"{GROUP}/") else value for key, value in annotations.items()}


def _short(request: str) -> str:
    if len(request) <= REQUEST_MAX_CHARS:
        return request
    digest = f"...sha256:{hashlib.sha256(request.encode()).hexdigest()}"
    return request[: REQUEST_MAX_CHARS - len(digest)] + digest


class Metadata(BaseModel):
    """The part of Kubernetes' object metadata that decisions use. Other fields are kept out, not refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    name: Name
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: Time = 0
    deletion_timestamp: Time | None = None
    annotations: Annotated[dict[str, str], AfterValidator(_with_short_requests)] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)


class RetrievalModel(BaseModel):
    """One object, as read. `status` is what was last written, possibly nothing.

    `left_out` has sentences on its schedules where these had to be left out (`parse_stored`), else it is empty.
    """

    model_config = ConfigDict(frozen=True)

    metadata: Metadata
    spec: RetrievalModelSpec
    status: RetrievalModelStatus = Field(default_factory=RetrievalModelStatus)
    left_out: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def registered_model_name(self) -> str:
        return self.spec.registry.name or f"{self.metadata.namespace}.{self.metadata.name}"


def parse_manifests(text: str, source: str) -> list[RetrievalModel]:
    """Every RetrievalModel of a YAML text.

    Raises InvalidManifest with all problems found; nothing is half-read. An empty text is a problem, not an empty list.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidManifest(source, [f"not YAML: {' '.join(str(error).split())}"]) from error
    if not documents:
        raise InvalidManifest(source, [f"found no document, expected a {KIND}"])
    return [parse_manifest(document, source) for document in documents]


def parse_manifest(document: object, source: str) -> RetrievalModel:
    """One manifest from a decoded YAML or JSON document. Raises InvalidManifest."""
    if not isinstance(document, Mapping):
        raise InvalidManifest(
            source, [f"found {type(document).__name__}, expected an object with apiVersion, kind, metadata, spec"]
        )
    problems = _type_problems(document)
    if problems:
        raise InvalidManifest(source, problems)
    problems = []
    parts: dict[str, Any] = {}
    for field, kind in (("metadata", Metadata), ("spec", RetrievalModelSpec)):
        try:
            parts[field] = kind.model_validate(document.get(field))
        except ValidationError as error:
            problems += [_sentence(field, detail) for detail in error.errors(include_url=False)]
    if problems:
        raise InvalidManifest(source, problems)
    return RetrievalModel(**parts)


def parse_stored(document: Mapping[str, Any], source: str) -> RetrievalModel:
    """An object that an API server let in; without its schedules when nothing but they cannot be read.

    A typing error in one must not end the care for what serves. Raises InvalidManifest when more than that is wrong.
    """
    try:
        return parse_manifest(document, source)
    except InvalidManifest as error:
        try:
            model = parse_manifest(_timeless(document), source)
        except InvalidManifest:
            raise error from None
        is_deleted = model.metadata.deletion_timestamp is not None  # it has no more need of a schedule
        return model.model_copy(update={"left_out": () if is_deleted else tuple(error.problems)})


def _timeless(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without schedules and time zone."""
    copied = copy.deepcopy(dict(document))
    for *parents, leaf in _TIMES:
        section = copied.get("spec")
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(leaf, None)
    return copied


def _type_problems(document: Mapping[Any, Any]) -> list[str]:
    expected = {"apiVersion": API_VERSION, "kind": KIND}
    problems = [
        f"{field}: found {document.get(field)!r}, expected {value!r}"
        for field, value in expected.items()
        if document.get(field) != value
    ]
    unknown = sorted(set(map(str, document)) - {*expected, "metadata", "spec", "status"})
    problems += [f"{field}: unknown field; expected apiVersion, kind, metadata, spec" for field in unknown]
    return problems


def _sentence(root: str, detail: Any) -> str:
    """`spec.promotion.gates[0].min: found 0.2 (a number), expected a decimal in quotes such as "0.02"`."""
    path = root
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    found = detail.get("input")
    shown = "" if isinstance(found, (dict, list)) or found is None else f"found {found!r}, "
    match detail["type"]:
        case "missing":
            return f"{path}: missing; this field is required"
        case "extra_forbidden":
            return f"{path}: unknown field"
        case "value_error":
            return f"{path}: {detail['msg'].removeprefix('Value error, ')}"
        case "literal_error":
            return f"{path}: {shown}expected {detail['ctx']['expected']}"
        case _:
            return f"{path}: {shown}{detail['msg'][0].lower()}{detail['msg'][1:]}"
