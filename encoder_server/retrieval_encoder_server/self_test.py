"""What a server proves about itself before it is ready.

1. Encoding: vectors are finite and of unit length, and a prompt's vector does not depend on its neighbours in a batch
   (wrong padding or masking shows here, as does a broken device).
2. Searching: an item's own vector finds that item (an index of other vectors or in another row order shows here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval_core.errors import BadInput, Diverged
from retrieval_encoder_server.engine import Engine, Query, Vectors
from retrieval_encoder_server.schemas import FeaturesInput

# fp32 is the precision of the contract; half precision rounds to about three digits.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
# Items whose own vector is searched, spread over the corpus; enough to meet a shifted shard, cheap on any index.
SAMPLED_ITEMS = 16
# An approximate index may score a near duplicate this much above the item itself (4-bit codes without a re-rank);
# in an index of other rows an item scores far lower than the best. A gut feeling.
SELF_HIT_TOLERANCE = 0.02
SELF_HIT_K = 100


def prove_encoding(engine: Engine, dtype: str = "float32") -> None:
    """Raise BadInput when the encoder's vectors cannot be trusted."""
    tolerance = TOLERANCES[dtype]
    member, item = engine.prepare([FeaturesInput("member", {}, "member"), FeaturesInput("item", {}, "item")])
    longest = [*member, *item]  # so that the batch has padding
    try:
        alone, again = engine.encode([member]), engine.encode([member])
        batch = engine.encode([longest, member, item])
    except Diverged as error:
        raise BadInput(f"self-test failed: {error}") from None
    _require(np.isfinite(batch).all() and np.isfinite(alone).all(), "a vector has a component that is not finite")
    norm_error = float(np.abs(np.linalg.norm(batch, axis=1) - 1).max())
    _require(norm_error <= tolerance, f"a vector's length differs from 1 by {norm_error:.2g}")
    for occasion, other in (("a second time", again[0]), ("in a batch", batch[1])):
        difference = float(np.abs(alone[0] - other).max())
        _require(difference <= tolerance, f"the same prompt encoded {occasion} differs by {difference:.2g}")


def prove_searching(engine: Engine, ids: Sequence[str], vectors: Vectors) -> None:
    """Raise BadInput unless items are found by their own vectors. `vectors` float32 [len(ids), served dimension]."""
    rows = np.unique(np.linspace(0, len(ids) - 1, SAMPLED_ITEMS).astype(int))
    queries = [Query(np.array(vectors[row]), min(SELF_HIT_K, len(ids))) for row in rows]
    for row, hits in zip(rows, engine.search_batch(queries), strict=True):
        _require(len(hits.ids) > 0 and np.isfinite(hits.scores).all(), "a search found nothing, or no finite score")
        scores = dict(zip(hits.ids, hits.scores, strict=True))
        # Items with equal prompts have equal vectors; more than SELF_HIT_K of them leave the item itself out.
        own = scores.get(ids[row], hits.scores[-1])
        _require(own >= 1 - SELF_HIT_TOLERANCE, f"item {ids[row]!r:.80} is not found by its own vector")


def _require(holds: Any, problem: str) -> None:
    if not holds:
        raise BadInput(f"self-test failed: {problem}; this server would give wrong answers and does not start")
