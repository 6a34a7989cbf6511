"""Item vectors as of each member's own time, for a perMember split.

Two prompts of one item differ only where a derived field (windowed counts, age) is shown as another token. So an item's
variant is the tuple of those tokens; most variants recur, and each distinct prompt is encoded once:

1. for a block of members in order of time, find the variants that no one has needed yet;
2. render and encode them together, unless the generation has a vector for the very prompt;
3. per member, bring the rows that changed since the member before up to date.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from retrieval_core.dataset import FeatureView
from retrieval_core.dataset.spec import ITEM_DERIVED, SECONDS_PER_DAY
from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import BadInput
from retrieval_core.generation import Generation
from retrieval_indexer.encode import prompt_hash
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet

Vectors = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]

# Members whose new variants are encoded together: batches of similar length need a few hundred prompts.
MEMBERS_PER_BLOCK = 64
# Variants kept for later members, besides each item's current one. 2^19 vectors of width 512 are 1 GiB.
MAX_STORED = 2**19
# Room for the codes of one derived field inside a key; there are at most 102 percentile tokens.
_CODE_BITS = 20


class ItemVariants:
    """Vectors of the corpus as of ascending times, at the generation's served dimension."""

    def __init__(self, evaluation: EvaluationSet, generation: Generation, encoder: Encoder) -> None:
        self._evaluation = evaluation
        self._encoder = encoder
        self._dimension = generation.dimension
        self._keys = VariantKeys(evaluation.view, evaluation, encoder)
        self._known = {key: row for row, key in enumerate(generation.prompt_hashes.tolist())}
        self._of_generation = generation.served_vectors
        self._current = np.empty((len(evaluation.corpus), self._dimension), dtype=np.float32)
        self._current_keys: Keys = np.full(len(evaluation.corpus), -1, dtype=np.int64)
        self._stored: dict[tuple[int, int], Vectors] = {}
        self.encoded = 0

    def at_times(self, times: npt.NDArray[np.int64]) -> Iterator[Vectors]:
        """For each time, ascending, the corpus as of then: float32 [n, d], valid until the next one is asked for."""
        for start in range(0, len(times), MEMBERS_PER_BLOCK):
            block = [int(time) for time in times[start : start + MEMBERS_PER_BLOCK]]
            keys = {time: self._keys.at(time) for time in block}
            self._make_room()
            self._prepare(keys)
            for time in block:
                self._bring_up_to_date(keys[time])
                yield self._current

    def _make_room(self) -> None:
        if len(self._stored) > MAX_STORED:
            self._stored.clear()

    def _prepare(self, keys: dict[int, Keys]) -> None:
        """Give every variant of the block a vector: the generation's, or a newly encoded one."""
        prompts: dict[str, list[tuple[int, int]]] = {}
        before = self._current_keys
        for time, wanted in keys.items():
            for row in np.flatnonzero(wanted != before).tolist():
                variant = (row, int(wanted[row]))
                if variant not in self._stored:
                    prompts.setdefault(self._render(row, time), []).append(variant)
                    self._stored[variant] = self._current[0]  # claimed, so that it is rendered once; set below
            before = wanted
        missing = []
        for prompt, variants in prompts.items():
            known = self._known.get(prompt_hash(prompt))
            if known is None:
                missing.append(prompt)
            else:
                self._store(variants, self._of_generation[known])
        for prompt, vector in zip(
            missing, truncate(self._encoder.encode_prompts(missing), self._dimension), strict=True
        ):
            self._store(prompts[prompt], vector)
        self.encoded += len(missing)

    def _store(self, variants: list[tuple[int, int]], vector: Vectors) -> None:
        for variant in variants:
            self._stored[variant] = vector

    def _bring_up_to_date(self, keys: Keys) -> None:
        for row in np.flatnonzero(keys != self._current_keys).tolist():
            self._current[row] = self._stored[row, int(keys[row])]
        self._current_keys = keys

    def _render(self, row: int, time: int) -> str:
        item = int(self._evaluation.corpus[row])
        return self._encoder.renderer.item(self._evaluation.view.item_features(item, time))


class VariantKeys:
    """One number per item and time that is equal exactly when the item's prompt is."""

    def __init__(self, view: FeatureView, evaluation: EvaluationSet, encoder: Encoder) -> None:
        self._view = view
        self._corpus = evaluation.corpus.astype(np.int32)
        self._created = evaluation.dataset.item_created_at
        self._percentiles = encoder.renderer.percentiles
        fields = encoder.renderer.spec.item.fields
        self._shown = [(field.name, field.rendering) for field in fields if field.name in ITEM_DERIVED]
        self._codes: dict[str, dict[str | float, int]] = {name: {} for name, _ in self._shown}

    def at(self, time: int) -> Keys:
        """int64 [n]."""
        keys = np.zeros(len(self._corpus), dtype=np.int64)
        counts = self._view.item_counts(self._corpus, np.full(len(self._corpus), time, dtype=np.int64))
        for position, (name, rendering) in enumerate(self._shown):
            values = {"engagements": counts.engagements, "impressions": counts.impressions}.get(name)
            ages = self._ages(time) if values is None else values.astype(np.float64)
            keys |= self._code(name, rendering, ages) << (_CODE_BITS * position)
        return keys

    def _ages(self, time: int) -> npt.NDArray[np.float64]:
        """Age in days, NaN for an item that does not exist yet or whose creation is unknown."""
        if self._created is None:
            return np.full(len(self._corpus), np.nan)
        ages = (time - self._created[self._corpus]) / SECONDS_PER_DAY
        return np.where(ages >= 0, ages, np.nan)

    def _code(self, name: str, rendering: str, values: npt.NDArray[np.float64]) -> Keys:
        """Small numbers for what the prompt shows: a percentile's token, or the value itself in other renderings."""
        unique, inverse = np.unique(values, return_inverse=True)
        codes = self._codes[name]
        shown = [
            self._percentiles.token(f"item.{name}", float(value)) if rendering == "percentile" else f"{value:.6g}"
            for value in unique
        ]
        numbers = np.asarray([codes.setdefault(token, len(codes)) for token in shown], dtype=np.int64)
        if len(codes) > 2**_CODE_BITS:
            raise BadInput(
                f"item.{name} is rendered as {rendering} and takes more than {2**_CODE_BITS} values over the members' "
                "times, each a prompt of its own; render it as a percentile"
            )
        return numbers[inverse]
