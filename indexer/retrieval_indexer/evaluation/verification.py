"""`retrieval-evaluate verify`: a dark stack must answer what direct computation answers (contract section 8)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import TemporarilyUnavailable
from retrieval_core.generation import Generation

FORMAT_VERSION = 1
# fp32 through the server is within 1e-4 of direct computation: closer scores may change places.
SCORE_TOLERANCE = 1e-4
MAX_MISMATCHES = 5
# A first request may compile and page in; the operator's own deadline bounds the whole verification.
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """Best first."""

    ids: list[str]
    scores: npt.NDArray[np.float64]


def compare_answers(served: Answer, direct: Answer) -> tuple[float, str | None]:
    """(largest score error, a sentence about the first difference or None).

    Rank by rank, scores must agree within SCORE_TOLERANCE; an item may be missing or take another place only where
    its score ties, within the tolerance, with what stands there.
    """
    if len(served.ids) != len(direct.ids):
        return float("inf"), f"{len(served.ids)} items served, {len(direct.ids)} computed"
    if len(set(served.ids)) != len(served.ids):
        return float("inf"), "an item was served twice"
    if not len(direct.ids):
        return 0.0, None
    error = float(np.abs(served.scores - direct.scores).max())
    if not error <= SCORE_TOLERANCE:
        rank = int(np.abs(served.scores - direct.scores).argmax())
        return error, f"score {served.scores[rank]:.6f} at rank {rank + 1}, computed {direct.scores[rank]:.6f}"
    computed = dict(zip(direct.ids, direct.scores, strict=True))
    # An item beyond the computed top k can only have tied with its last score.
    for rank, (item, score) in enumerate(zip(served.ids, served.scores, strict=True)):
        expected = computed.get(item, direct.scores[-1])
        if abs(score - expected) > SCORE_TOLERANCE:
            return error, f"item {item} at rank {rank + 1} with score {score:.6f}, computed {expected:.6f}"
    return error, None


class Verifier:
    """Asks the server at `url` as a client would, with member features as of the generation's time."""

    def __init__(self, client: httpx.Client, bundle: Bundle, generation: Generation, dataset: Dataset) -> None:
        self._client = client
        self._generation = generation
        self._dataset = dataset
        self._view = FeatureView(dataset, for_serving=True)
        self._encoder = Encoder(bundle)
        self._shown = self._encoder.renderer

    def verify(self, members: list[int], k: int, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """The document of verification.json. Raises TemporarilyUnavailable when the server cannot be reached."""
        features = [self._features(member) for member in members]
        vectors = truncate(self._encoder.encode_members(features), self._generation.dimension)
        direct = self._generation.search(vectors, k)
        mismatches: list[str] = []
        errors: list[float] = []
        latencies_ms: list[float] = []
        for number, member in enumerate(members):
            expected = Answer(direct.ids[number].tolist(), direct.scores[number].astype(np.float64))
            started = time.perf_counter()
            response = self._ask(features[number], k)
            latencies_ms.append((time.perf_counter() - started) * 1000)
            error, difference = self._judge(response, expected)
            errors.append(error)
            if difference is not None:
                mismatches.append(f"member {self._dataset.member_ids[member]}: {difference}")
            progress(1)
        largest = max(errors, default=0.0)
        return {
            "formatVersion": FORMAT_VERSION,
            "kind": "verification",
            "bundleId": self._generation.manifest.bundle_id,
            "generationId": self._generation.id,
            "asked": len(members),
            "matched": len(members) - len(mismatches),
            "maxScoreError": largest if np.isfinite(largest) else None,
            "mismatches": mismatches[:MAX_MISMATCHES],
            "latencyMs": _percentiles(latencies_ms),
            "requests": len(members),
        }

    def _features(self, member: int) -> dict[str, Any]:
        """What the prompts show of the member, and nothing else: the server refuses unknown fields."""
        spec = self._shown.spec.member
        history = spec.history
        features = self._view.member_features(
            member, self._generation.manifest.as_of, history.max_items if history is not None else 0
        )
        chosen: dict[str, Any] = {field.name: features[field.name] for field in spec.fields}
        if history is not None:
            past: Any = features["history"]
            chosen["history"] = [{field.name: item[field.name] for field in history.fields} for item in past]
        return chosen

    def _ask(self, features: dict[str, Any], k: int) -> httpx.Response:
        try:
            return self._client.post("/v1/retrieve", json={"member": features, "k": k})
        except httpx.TransportError as error:
            raise TemporarilyUnavailable(f"{self._client.base_url} does not answer: {error}") from error

    def _judge(self, response: httpx.Response, expected: Answer) -> tuple[float, str | None]:
        if response.status_code != httpx.codes.OK:
            return float("inf"), f"HTTP {response.status_code}: {response.text[:200]}"
        wanted = (self._generation.manifest.bundle_id, self._generation.id)
        headers = (response.headers.get("X-Bundle-Id"), response.headers.get("X-Generation-Id"))
        try:
            body = response.json()
            said = (body["bundle_id"], body["generation_id"])
            served = Answer([str(item) for item in body["ids"]], np.asarray(body["scores"], dtype=np.float64))
        except (ValueError, KeyError, TypeError) as error:
            return float("inf"), f"an answer that is not of the contract: {type(error).__name__} {error}"
        if headers != wanted or said != wanted:
            return float("inf"), f"ids {headers} in headers and {said} in the body, expected {wanted}"
        if len(served.ids) != len(served.scores) or not np.isfinite(served.scores).all():
            return float("inf"), "scores that are missing or not finite"
        return compare_answers(served, expected)


def _percentiles(latencies_ms: list[float]) -> dict[str, float]:
    values = np.percentile(latencies_ms, [50, 95, 99]) if latencies_ms else np.zeros(3)
    return dict(zip(("p50", "p95", "p99"), (round(float(value), 3) for value in values), strict=True))


def open_verification(bundle_uri: str, generation_uri: str) -> tuple[Bundle, Generation]:
    """Bundle and generation of the stack; BadInput when they do not belong together."""
    bundle = Bundle.open(bundle_uri)
    generation = Generation.open(generation_uri, expected_bundle_id=bundle.id)
    return bundle, generation
