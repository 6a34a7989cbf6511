"""One bundle and at most one index generation, turned into answers. No HTTP, no queue, no event loop.

Three kinds of work, each done by its own threads (see `service.py`): `prepare` renders and tokenises, `encode` runs the
model, `search_batch` asks the index. An engine is made, and proved by `self_test.py`, in `loading.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrieval_core.encoding import truncate
from retrieval_core.errors import BadInput
from retrieval_core.prompts.spec import PromptSpec
from retrieval_encoder_server.features import FeatureChecks
from retrieval_encoder_server.refusals import Malformed, NotServed, TooLarge
from retrieval_encoder_server.schemas import EmbeddingInput, FeaturesInput, PromptInput

Vectors = npt.NDArray[np.float32]


class Renderer(Protocol):
    """The part of `retrieval_core.prompts.PromptRenderer` that a server needs."""

    def member(self, features: Mapping[str, Any]) -> str: ...

    def item(self, features: Mapping[str, Any]) -> str: ...


class Index(Protocol):
    """The part of `retrieval_core.generation.Generation` that a server needs. Vectors have the served dimension."""

    @property
    def id(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    def search(self, queries: Vectors, k: int, exclude: Any = None, allowed: Any = None) -> Any: ...

    def member_vector(self, member_id: str) -> Vectors | None: ...


@dataclass(frozen=True)
class Ids:
    """What this server serves; in every response. `generation_id` is None and `count` 0 without an index generation."""

    bundle_id: str
    generation_id: str | None
    dimension: int
    count: int


TokenIds = Sequence[int]


@dataclass(frozen=True)
class Query:
    """One search: a unit vector, float32 [served dimension]. `allowed` None: no filter."""

    vector: Vectors
    k: int
    exclude: Sequence[str] = ()
    allowed: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Hits:
    """Best first; `scores` are inner products, float32."""

    ids: Sequence[str]
    scores: npt.NDArray[np.float32]


class Engine:
    def __init__(
        self,
        *,
        bundle_id: str,
        prompts: PromptSpec,
        full_dimension: int,
        dimensions: Sequence[int],
        served_dimension: int,
        renderer: Renderer,
        tokenise: Callable[[str], TokenIds],
        longest_token: int,
        encode: Callable[[Sequence[TokenIds]], Vectors],
        index: Index | None,
    ) -> None:
        """`dimensions`: the widths that vectors may be cut to. `longest_token`: the tokenizer's, in characters.

        `renderer` and `tokenise` are used by several threads, `encode` (to float32 [n, full_dimension], unit length) by
        one at a time.
        """
        self.ids = Ids(bundle_id, index.id if index else None, served_dimension, index.count if index else 0)
        self.full_dimension = full_dimension
        self.dimensions = tuple(sorted({*dimensions, full_dimension}))
        self.encode = encode
        self._checks = FeatureChecks(prompts)
        self._max_tokens = max(prompts.max_tokens.values())
        self._max_characters = self._max_tokens * longest_token
        self._renderer = renderer
        self._tokenise = tokenise
        self._index = index

    def prepare(self, inputs: Sequence[EmbeddingInput]) -> list[TokenIds]:
        """Check, render and tokenise. Malformed names the wrong field; TooLarge a prompt beyond the token budget."""
        return [self._prepare(given) for given in inputs]

    def check_dimension(self, dimension: int | None) -> None:
        """Malformed on a width that the bundle was not trained for; None (the served one) is always right."""
        if dimension is not None and dimension not in self.dimensions:
            raise Malformed(f"dimensions: found {dimension}, this bundle has {', '.join(map(str, self.dimensions))}")

    def resize(self, vectors: Vectors, dimension: int | None) -> Vectors:
        """Full-width vectors at another trained width, unit length again; None is the served width."""
        resized: Vectors = truncate(vectors, dimension or self.ids.dimension)
        return resized

    def as_query(self, embedding: Sequence[float]) -> Vectors:
        """A caller's vector, full width or already truncated, as a unit query vector."""
        vector = np.asarray(embedding, dtype=np.float32)[None]
        if vector.shape[1] not in {self.ids.dimension, self.full_dimension}:
            raise Malformed(
                f"embedding: found {vector.shape[1]} numbers, expected {self.ids.dimension} (the served dimension) "
                f"or {self.full_dimension} (full width)"
            )
        query: Vectors = truncate(vector, self.ids.dimension)[0]
        if not np.isclose(np.linalg.norm(query), 1.0, atol=1e-3):
            raise Malformed("embedding: its length is zero or not finite, so it has no direction to search in")
        return query

    def member_vector(self, member_id: str) -> Vectors:
        """The member's stored vector; NotServed when the generation has none for this member."""
        vector = self.index.member_vector(member_id)
        if vector is None:
            raise NotServed(
                f"member_id: generation {self.ids.generation_id} has no vector of this member; send features"
            )
        return vector

    @property
    def index(self) -> Index:
        if self._index is None:
            raise NotServed("this server was started without an index generation (GENERATION_URI); it only encodes")
        return self._index

    def check_filter(self, allowed: Mapping[str, Sequence[str]] | None) -> None:
        """Malformed on an attribute that the generation cannot filter by."""
        known = self.index.attributes
        for name in allowed or {}:
            if name not in known:
                names = ", ".join(sorted(known)) or "none"
                raise Malformed(f"filter.{name:.80}: not a filterable attribute; this generation has {names}")

    def search_batch(self, queries: Sequence[Query]) -> list[Hits]:
        """Answer queries in order; those with the same k and filter share one call of the index."""
        groups: dict[Any, list[int]] = {}
        for position, query in enumerate(queries):
            groups.setdefault((query.k, _hashable(query.allowed)), []).append(position)
        answers: dict[int, Hits] = {}
        for positions in groups.values():
            group = [queries[position] for position in positions]
            answers.update(zip(positions, self._search_group(group), strict=True))
        return [answers[position] for position in range(len(queries))]

    def _search_group(self, group: Sequence[Query]) -> list[Hits]:
        vectors = np.stack([query.vector for query in group])
        found = self.index.search(vectors, group[0].k, [list(query.exclude) for query in group], group[0].allowed)
        return [Hits(np.asarray(ids).tolist(), scores) for ids, scores in zip(found.ids, found.scores, strict=True)]

    def _prepare(self, given: EmbeddingInput) -> TokenIds:
        text = self._render(given) if isinstance(given, FeaturesInput) else self._bounded(given)
        try:
            ids = self._tokenise(text)
        except UnicodeEncodeError:
            raise Malformed(f"{given.path}: not valid Unicode text (a lone surrogate)") from None
        if not ids:
            raise Malformed(f"{given.path}: the prompt is empty")
        if len(ids) > self._max_tokens:
            raise TooLarge(
                f"{given.path}: the prompt has {len(ids)} tokens, this bundle takes at most {self._max_tokens}"
            )
        return ids

    def _bounded(self, given: PromptInput) -> str:
        """The prompt, if it can fit: tokenising megabytes takes seconds, and its length alone says that it will not.

        The renderer bounds its own texts. A tokenizer that drops or fuses characters (white space, unknown ones) could
        have made few tokens of a longer text; such a text is refused all the same.
        """
        if len(given.prompt) > self._max_characters:
            raise TooLarge(
                f"{given.path}: the prompt has {len(given.prompt)} characters, more than the {self._max_tokens} tokens "
                f"that this bundle takes can hold ({self._max_characters})"
            )
        return given.prompt

    def _render(self, given: FeaturesInput) -> str:
        self._checks.check(given)
        render = self._renderer.member if given.side == "member" else self._renderer.item
        try:
            return render(given.features)
        except BadInput as error:
            raise Malformed(f"{given.path}: {error}") from None


def _hashable(allowed: Mapping[str, Sequence[str]] | None) -> Any:
    return None if allowed is None else tuple(sorted((name, tuple(sorted(values))) for name, values in allowed.items()))
