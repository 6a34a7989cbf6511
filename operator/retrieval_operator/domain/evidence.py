"""The reports of the workloads, as the operator reads them (docs/contracts.md).

A report that cannot be read, or that speaks of other ids than asked for, is no evidence: `Unreadable` is raised and
the step counts as failed or inconclusive, never as passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

BUNDLE_ID = r"^b-[0-9a-f]{16}$"
GENERATION_ID = r"^g-[0-9a-f]{16}$"
NOT_PERSONAL = "notPersonal"  # the baseline that knows the candidate's item vectors, and no member


class Unreadable(ValueError):
    """A report is not what the contract says; the message names the first problem."""


class Report(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    format_version: Literal[1]


class BundleReport(Report):
    id: str = Field(pattern=BUNDLE_ID)


class IndexChecks(Report):
    format_version: Literal[1] = 1
    finite: bool
    max_norm_error: float | None
    self_hit: float | None
    recall_at_served_k: float | None
    coverage: float | None = None


class IndexReport(Report):
    id: str = Field(pattern=GENERATION_ID)
    kind: Literal["evaluation", "serving"]
    bundle_id: str = Field(pattern=BUNDLE_ID)
    as_of: int
    count: int = Field(ge=0)
    served_k: int = Field(ge=1)
    checks: IndexChecks


class Identity(Report):
    format_version: Literal[1] = 1
    bundle_id: str
    generation_id: str


class GateEvidence(Report):
    """One gate's numbers. None: not measured, or not finite (then `problem` says so)."""

    format_version: Literal[1] = 1
    metric: str
    k: int
    pool: str
    segment: str
    n: int = Field(ge=0)
    discordant: int | None = None
    value: float | None = None
    value_lower: float | None = None
    value_upper: float | None = None
    champion_value: float | None = None
    delta: float | None = None
    lower: float | None = None
    upper: float | None = None
    method: str = ""
    n_to_decide: int | None = None
    problem: str | None = None


class Leakage(Report):
    """Why a stack may have seen the test part, a sentence each; None: it has not."""

    format_version: Literal[1] = 1
    candidate: str | None
    champion: str | None


class Comparison(Report):
    """Candidate - baseline, paired by member. No gate looks at it: people do."""

    format_version: Literal[1] = 1
    baseline: str
    metric: str
    k: int
    pool: str
    segment: str
    delta: float
    lower: float
    upper: float


class EvaluationReport(Report):
    kind: Literal["evaluation"]
    candidate: Identity
    champion: Identity | None
    as_of: int
    leakage: Leakage
    gates: tuple[GateEvidence, ...]
    comparisons: tuple[Comparison, ...] = ()
    collapsed: bool


class Latency(Report):
    format_version: Literal[1] = 1
    p50: float
    p95: float
    p99: float


class VerificationReport(Report):
    kind: Literal["verification"]
    bundle_id: str
    generation_id: str
    asked: int = Field(ge=0)
    matched: int = Field(ge=0)
    max_score_error: float | None
    mismatches: tuple[str, ...] = ()
    latency_ms: Latency | None = None


_READ = frozenset(
    to_camel(name)
    for report in (BundleReport, IndexReport, EvaluationReport, VerificationReport)
    for name in report.model_fields
)


def essence(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is read of a report, for it is kept for years. The rows for people are most of an evaluation."""
    kept = {name: value for name, value in document.items() if name in _READ}
    rows = kept.get("comparisons")
    if isinstance(rows, list):
        kept["comparisons"] = [row for row in rows if not isinstance(row, dict) or row.get("baseline") == NOT_PERSONAL]
    return kept


R = TypeVar("R", bound=Report)


def read(kind: type[R], document: Mapping[str, Any]) -> R:
    """Read a report. Raises Unreadable with the path of the first problem."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"])) or "the document"
        raise Unreadable(f"{path}: {first['msg'].lower()} (found {first.get('input')!r:.80})") from error
