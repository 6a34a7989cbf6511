"""Numbers as percentiles of the training window.

For each field, the training values are ranked: the bucket of a value is 100 times the share of training values at or
below it, rounded up. So equal values share a bucket, edges that coincide collapse, and only buckets that some training
value fell into exist. A value that was not in the training data goes to the nearest bucket that was: the edge between
two neighbouring buckets lies halfway between their closest training values.
Zero has its own token (most counts are zero, and "never" is not "rarely"), and so has an unknown number.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval_core.errors import BadInput, validate_document
from retrieval_core.prompts.spec import PromptSpec

ZERO_TOKEN = "<|pct.zero|>"  # noqa: S105 - a token of a vocabulary
UNKNOWN_TOKEN = "<|pct.unknown|>"  # noqa: S105 - a token of a vocabulary


def bucket_token(bucket: int) -> str:
    """The added token of a bucket, 1 to 100."""
    return f"<|pct.{bucket}|>"


class Table(BaseModel):
    """One field's buckets, ascending; `edges[i]` is the highest value of `buckets[i]`, the last bucket has none.

    No buckets: the training window had no number other than zero, so any other number is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    edges: tuple[float, ...]
    buckets: tuple[Annotated[int, Field(ge=1, le=100)], ...]

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        if len(self.edges) != max(0, len(self.buckets) - 1):
            raise ValueError(f"{len(self.buckets)} buckets need one edge less, found {len(self.edges)}")
        if any(low >= high for low, high in (*pairwise(self.edges), *pairwise(self.buckets))):
            raise ValueError("edges and buckets must be ascending")
        return self

    @classmethod
    def fit(cls, values: ArrayLike) -> Table:
        """Buckets of the values that are numbers other than zero; any shape, any numeric dtype."""
        numbers = np.asarray(values, dtype=np.float64).ravel()
        numbers = np.sort(numbers[np.isfinite(numbers) & (numbers != 0)])
        unique, counts = np.unique(numbers, return_counts=True)
        at_or_below = np.cumsum(counts)
        # In integers, because 100 * (7 / 100) is 7.000000000000001 and would round up to bucket 8.
        buckets = -(-100 * at_or_below // max(1, numbers.size))
        lasts = np.flatnonzero(np.diff(buckets))
        low, high = unique[lasts], unique[lasts + 1]
        halfway = low / 2 + high / 2
        # Halfway between two neighbouring floats is one of them: the edge then is the lower one.
        edges = np.where((low < halfway) & (halfway < high), halfway, low)
        return cls(edges=tuple(edges.tolist()), buckets=tuple(np.unique(buckets).tolist()))

    def token(self, value: float | None) -> str:
        """The added token of a value; None and not-a-number are unknown."""
        if value is None or not math.isfinite(value):
            return UNKNOWN_TOKEN
        if value == 0:
            return ZERO_TOKEN
        if not self.buckets:
            return UNKNOWN_TOKEN
        return bucket_token(self.buckets[bisect.bisect_left(self.edges, value)])


class Percentiles(BaseModel):
    """The tables of all percentile fields, by `side.NAME`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: dict[str, Table] = Field(default_factory=dict)

    @classmethod
    def fit(cls, spec: PromptSpec, values: Mapping[str, NDArray[Any]]) -> Percentiles:
        """Tables for the spec's percentile fields from training-window values by `side.NAME`; more are ignored.

        Raises BadInput when a field of the spec has no values given: its column does not exist or is not numeric.
        """
        missing = [name for name in spec.percentile_names() if name not in values]
        if missing:
            raise BadInput(
                f"the prompts render {missing[0]!r} as a percentile, but there is no such number; "
                f"numbers are {', '.join(sorted(values)) or 'none'}"
            )
        return cls(tables={name: Table.fit(values[name]) for name in spec.percentile_names()})

    @classmethod
    def parse(cls, document: Any, source: str) -> Percentiles:
        """From the `percentiles` part of prompts.json; BadInput names the wrong field."""
        return validate_document(cls, {"tables": document}, source)

    def document(self) -> dict[str, Any]:
        """The `percentiles` part of prompts.json."""
        document: dict[str, Any] = self.model_dump(mode="json")["tables"]
        return document

    def token(self, name: str, value: float | None) -> str:
        """The added token of a value of field `side.NAME`."""
        return self.tables[name].token(value)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Every bucket that some field has seen in training, ascending."""
        return tuple(sorted({bucket for table in self.tables.values() for bucket in table.buckets}))
