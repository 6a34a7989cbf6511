"""The types and file names of an index generation, and the id that its content decides.

vectors/NNNNN.f32    float32, little-endian, row-major [rows of the shard, dimension], unit length
items/NNNNN.parquet  item_id, prompt_hash, and one `attribute.NAME` column per filterable attribute
shards/NNNNN.json    the record of a finished shard; lets an interrupted build continue, not part of the id
members/             optional: vectors.f32 and ids.parquet
index.faiss          derived from the vectors at the served dimension
MANIFEST.json        last
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from retrieval_core.files import canonical_json

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
INDEX = "index.faiss"
MEMBER_VECTORS = "members/vectors.f32"
MEMBER_IDS = "members/ids.parquet"
ATTRIBUTE_PREFIX = "attribute."

Kind = Literal["evaluation", "serving"]
# What made it and how long it took is not what it is: the same content has one id.
_NOT_IN_ID = frozenset({"id", "library", "copied", "encoded", "previous", "latency"})
_SHARD_FILE = re.compile(r"^vectors/(\d{5})\.f32$")


def vectors_file(shard: int) -> str:
    return f"vectors/{shard:05d}.f32"


def items_file(shard: int) -> str:
    return f"items/{shard:05d}.parquet"


def shard_file(shard: int) -> str:
    return f"shards/{shard:05d}.json"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class FileEntry(_Document):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Checks(_Document):
    """What the integrity gates of a refresh look at. None: could not be computed, which is never good."""

    finite: bool
    """Whether every component of every vector, items and members, is a finite number."""
    max_norm_error: float | None
    """Largest |length - 1| over all full-width vectors."""
    self_hit: float | None
    """Share of sampled items whose own vector finds, first, an item with the same prompt."""
    recall_at_served_k: float | None
    """Mean share of the exact top servedK that the index returns for sampled members; None when there is no member.

    `Flat` is exact for whatever is asked, so it is asked for sampled items, which need no encoding.
    """
    coverage: float
    """Items with a vector / items of the dataset that existed at asOf."""


class Latency(_Document):
    """What a build with a latency target asked for, and what it measured; milliseconds."""

    target_ms: Annotated[int, Field(gt=0)]
    p50_ms: float | None
    """Median time of one query at servedK, on one thread of the machine that built the index. None: nobody to ask."""


class Manifest(_Document):
    format_version: Literal[1] = 1
    id: str
    kind: Kind
    bundle_id: str
    snapshot: str
    as_of: int
    count: Annotated[int, Field(gt=0)]
    dimension: Annotated[int, Field(gt=0)]
    served_dimension: Annotated[int, Field(gt=0)]
    metric: Literal["ip"] = "ip"
    factory: str
    parameters: dict[str, float]
    library: dict[str, str]
    served_k: Annotated[int, Field(gt=0)]
    checks: Checks
    latency: Latency | None = None
    """None without a latency target, and in manifests older than this field."""
    previous: str | None
    copied: Annotated[int, Field(ge=0)]
    encoded: Annotated[int, Field(ge=0)]
    members: Annotated[int, Field(ge=0)]
    files: dict[str, FileEntry]

    def document(self) -> dict[str, Any]:
        """The JSON document, with the field names of the contract."""
        return self.model_dump(mode="json", by_alias=True)

    def shards(self) -> list[int]:
        """Numbers of the shards, in row order."""
        return sorted(int(match[1]) for match in map(_SHARD_FILE.match, self.files) if match)


def generation_id(document: dict[str, Any]) -> str:
    """`g-` and 16 hex digits of the manifest's document without the fields that do not change the content."""
    content = {key: value for key, value in document.items() if key not in _NOT_IN_ID}
    return "g-" + hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]
