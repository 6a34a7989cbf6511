"""bundle.json: what the embedding is, every file with its hash, and the id made of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from retrieval_core.files import canonical_json, sha256_file

MANIFEST_FILE = "bundle.json"
PROMPTS_FILE = "prompts.json"
TRAINING_FILE = "training.json"
CARD_FILE = "README.md"
# What tells where a bundle comes from and changes no vector: not part of the id.
RECORD_FILES = frozenset({TRAINING_FILE, CARD_FILE})

Dtype = Literal["float32", "bfloat16", "float16"]
Role = Literal["embedding", "record"]
Width = Annotated[int, Field(ge=1, le=65_536)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class MaxTokens(_Document):
    """Prompt budgets, BOS and EOS included."""

    member: Annotated[int, Field(ge=1)]
    item: Annotated[int, Field(ge=1)]

    @property
    def longest(self) -> int:
        return max(self.member, self.item)


class EmbeddingSpec(_Document):
    """How hidden states become vectors. `dimension` is the full width, `dimensions` those trained to be cut to."""

    pooling: Literal["mean"] = "mean"
    normalize: Literal[True] = True
    dimensions: Annotated[tuple[Width, ...], Field(min_length=1)]
    dimension: Width
    dtype: Dtype = "float32"
    max_tokens: MaxTokens

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        if max(self.dimensions) > self.dimension or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(
                f"dimensions {list(self.dimensions)} must differ and be at most the full width {self.dimension}"
            )
        return self


class BundleFile(_Document):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    role: Role

    @classmethod
    def of(cls, directory: Path, name: str) -> BundleFile:
        path = directory / name
        role: Role = "record" if name in RECORD_FILES else "embedding"
        return cls(sha256=sha256_file(path), size=path.stat().st_size, role=role)


class BundleManifest(_Document):
    """bundle.json."""

    format_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^b-[0-9a-f]{16}$")]
    embedding: EmbeddingSpec
    files: dict[str, BundleFile]

    @model_validator(mode="after")
    def _files_stay_inside(self) -> Self:
        for name, file in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
                raise ValueError(f"files: {name!r} is not a relative path inside the bundle")
            if file.role == "record" and name not in RECORD_FILES:
                raise ValueError(f"files: {name!r} has role record, but it decides what an embedding means")
        return self

    @classmethod
    def describe(cls, embedding: EmbeddingSpec, files: Mapping[str, BundleFile]) -> BundleManifest:
        """The manifest of these files, with its id."""
        return cls(id=bundle_id(embedding, files), embedding=embedding, files=dict(files))

    def document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def bundle_id(embedding: EmbeddingSpec, files: Mapping[str, BundleFile]) -> str:
    """`b-` and 16 hex digits over what decides an embedding: two bundles with one id give the same vectors."""
    document = {
        "formatVersion": 1,
        "embedding": embedding.model_dump(mode="json", by_alias=True),
        "files": {name: file.sha256 for name, file in files.items() if file.role == "embedding"},
    }
    return "b-" + hashlib.sha256(canonical_json(document).encode()).hexdigest()[:16]
