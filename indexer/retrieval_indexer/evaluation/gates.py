"""One entry of evaluation.json per requested gate: the numbers an operator compares with its thresholds.

No verdict is made here. A gate that cannot be measured says why in `problem` and has no value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from retrieval_core.errors import BadArguments, describe_invalid_fields
from retrieval_indexer.evaluation.answers import Answers, Metric
from retrieval_indexer.evaluation.bootstrap import Bounds, mean_bounds, paired_bounds
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet
from retrieval_indexer.evaluation.pools import NEGATIVES
from retrieval_indexer.evaluation.power import members_to_decide
from retrieval_indexer.evaluation.recall import is_too_few_items

Problem = Literal["NonFinite", "Collapsed", "NoSuchSegment", "TooFewItems", "Leakage"]
Margin = Annotated[Decimal, Field(ge=0, le=1)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class GateRequest(_Document):
    """A gate as `promotion.gates` of a manifest has it; thresholds serve only to say how many members would decide."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    metric: Literal["recall", "hitRate"] = "recall"
    k: Annotated[int, Field(ge=1)] = 10
    pool: Literal["uniform", "matched", "corpus"] = "matched"
    segment: str = "all"
    max_regression: Margin | None = None

    def measured(self) -> Metric:
        return Metric(self.metric, self.k, self.pool)


class GateResult(_Document):
    """The entry of evaluation.json; None: not measured, and `problem` says why, or there is no champion."""

    metric: str
    k: int
    pool: str
    segment: str
    n: int = 0
    discordant: int | None = None
    value: float | None = None
    value_lower: float | None = None
    value_upper: float | None = None
    champion_value: float | None = None
    delta: float | None = None
    lower: float | None = None
    upper: float | None = None
    confidence: float
    method: str = ""
    n_to_decide: int | None = None
    problem: Problem | None = None


def parse_gates(text: str) -> list[GateRequest]:
    """Gates from a file name or inline JSON; BadArguments names the wrong field."""
    source = text if text.lstrip().startswith(("[", "{")) else _read(text)
    try:
        document = json.loads(source)
        gates = TypeAdapter(list[GateRequest]).validate_python(document)
    except json.JSONDecodeError as error:
        raise BadArguments(f"--gates is neither a file nor JSON: {error}") from None
    except ValidationError as error:
        raise BadArguments("--gates: " + "; ".join(describe_invalid_fields(error))) from None
    wrong = [gate for gate in gates if gate.metric == "hitRate" and gate.pool != "corpus"]
    if wrong:
        raise BadArguments(f"--gates: metric hitRate has pool {wrong[0].pool!r}, expected 'corpus'")
    return gates


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise BadArguments(f"--gates: {name!r} cannot be read ({error.strerror}); give a file or inline JSON") from None


class GateMeasurement:
    """Measures gates for a candidate and, when there is one, a champion over one evaluation set.

    `leaks`: one of them may have seen the test part; the numbers are measured all the same, and marked.
    """

    def __init__(
        self,
        evaluation: EvaluationSet,
        candidate: Answers,
        champion: Answers | None,
        *,
        confidence: float,
        seed: int,
        leaks: bool,
    ) -> None:
        self._evaluation = evaluation
        self._candidate = candidate
        self._champion = champion
        self._confidence = confidence
        self._seed = seed
        self._leaks = leaks

    def measure(self, gate: GateRequest) -> GateResult:
        """The gate's numbers, or the problem that keeps them from meaning anything."""
        blank = GateResult(
            metric=gate.metric, k=gate.k, pool=gate.pool, segment=gate.segment, confidence=self._confidence
        )
        segment = self._evaluation.segment(gate.segment)
        chosen = None if segment is None else self._with_value(gate.measured(), segment)
        problem = self._problem(gate, segment, chosen)
        if problem is not None or chosen is None:
            return blank.model_copy(update={"problem": problem, "n": 0 if chosen is None else int(chosen.sum())})
        return blank.model_copy(update=self._numbers(gate, chosen))

    def _with_value(self, metric: Metric, segment: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Members of the segment that have this metric; whether one has does not depend on the model."""
        return segment & np.isfinite(self._candidate.values[metric])

    def _problem(
        self, gate: GateRequest, segment: npt.NDArray[np.bool_] | None, chosen: npt.NDArray[np.bool_] | None
    ) -> Problem | None:
        subjects = [self._candidate] if self._champion is None else [self._candidate, self._champion]
        candidates = NEGATIVES + 1 if gate.pool != "corpus" else len(self._evaluation.corpus)
        if any(subject.not_finite for subject in subjects):
            return "NonFinite"
        if self._candidate.collapsed:
            return "Collapsed"
        if segment is None or not segment.any():
            return "NoSuchSegment"
        if is_too_few_items(gate.k, candidates) or chosen is None or not chosen.any():
            return "TooFewItems"
        return None

    def _numbers(self, gate: GateRequest, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        metric = gate.measured()
        own = self._candidate.values[metric][chosen]
        value = mean_bounds(own, low=0, high=1, confidence=self._confidence, seed=self._seed)
        numbers: dict[str, Any] = {
            "n": len(own),
            "value": value.mean,
            "value_lower": value.lower,
            "value_upper": value.upper,
            "method": value.method,
            "problem": "Leakage" if self._leaks else None,
        }
        if self._champion is None:
            return numbers
        theirs = self._champion.values[metric][chosen]
        paired = paired_bounds(own, theirs, confidence=self._confidence, seed=self._seed)
        return numbers | {
            "champion_value": float(theirs.mean()),
            "delta": paired.mean,
            "lower": paired.lower,
            "upper": paired.upper,
            "discordant": paired.discordant,
            "method": paired.method,
            "n_to_decide": self._n_to_decide(gate, paired, own - theirs),
        }

    def _n_to_decide(self, gate: GateRequest, paired: Bounds, differences: npt.NDArray[np.float64]) -> int | None:
        if gate.max_regression is None:
            return None
        return members_to_decide(
            delta=paired.mean,
            spread=float(differences.std()),
            margin=float(gate.max_regression),
            confidence=self._confidence,
        )


def gate_metrics(gates: Sequence[GateRequest]) -> list[Metric]:
    return [gate.measured() for gate in gates]
