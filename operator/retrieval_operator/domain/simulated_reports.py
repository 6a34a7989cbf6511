"""The reports of attempts that succeed, for `plan` and the tests. Synthetic: every gate's value is 1.

Ids and times of what exists already are the real ones; those of what does not exist yet follow from its key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.identity import digest
from retrieval_operator.domain.observed import RunObserved
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What reports say of an index generation. `as_of` in seconds since the epoch."""

    bundle_id: str
    id: str
    as_of: int


@dataclass(frozen=True)
class Known:
    """What exists: index generations by their key; the asOf of the newest evaluation generation; the largest index."""

    generations: Mapping[str, Generation]
    evaluated_as_of: int = 1
    items: int = 1000


NOTHING_YET = Known({})


def known_from(runs: Collection[RunObserved], stacks: Iterable[StackRecord]) -> Known:
    """From runs with reports, in the order of their creation, and from the records of stacks."""
    generations = {
        record.generation_key: Generation(bundle_id=record.bundle_id, id=record.generation_id, as_of=record.as_of or 1)
        for record in stacks
    }
    evaluated_as_of = 1
    for run in runs:
        report = run.report or {}
        if {"bundleId", "id", "asOf"} <= report.keys():
            generations[run.key] = Generation(bundle_id=report["bundleId"], id=report["id"], as_of=report["asOf"])
            evaluated_as_of = report["asOf"] if report.get("kind") == "evaluation" else evaluated_as_of
    items = [int(run.report["count"]) for run in runs if run.report and "count" in run.report]
    return Known(generations, evaluated_as_of, max([Known.items, *items]))


def passing_report(workload: WorkloadSpec, known: Known = NOTHING_YET) -> dict[str, Any]:
    """The report a successful attempt makes; empty for a step that makes none."""
    arguments = dict(zip(workload.arguments, workload.arguments[1:], strict=False))
    match workload.step:
        case WorkloadStep.COLLECT | WorkloadStep.ENCODE:
            return {}
        case WorkloadStep.TRAIN:
            return {"formatVersion": 1, "id": f"b-{_hex16(workload.key)}"}
        case WorkloadStep.INDEX_EVALUATION | WorkloadStep.INDEX_CHAMPION | WorkloadStep.INDEX_SERVING:
            return _index_report(workload, arguments, known)
        case WorkloadStep.EVALUATE:
            return _evaluation_report(arguments, known)
        case _:
            return _verification_report(arguments, known)


def _index_report(workload: WorkloadSpec, arguments: Mapping[str, str], known: Known) -> dict[str, Any]:
    checks = {"finite": True, "maxNormError": 0.0, "selfHit": 1.0, "recallAtServedK": 1.0, "coverage": 1.0}
    return {
        "formatVersion": 1,
        "id": f"g-{_hex16(workload.key)}",
        "kind": arguments["--kind"],
        "bundleId": arguments["--expected-bundle-id"],
        "asOf": known.evaluated_as_of,
        "count": known.items,
        "servedK": int(arguments["--served-k"]),
        "checks": checks,
    }


def _evaluation_report(arguments: Mapping[str, str], known: Known) -> dict[str, Any]:
    candidate = _generation(arguments["--candidate-bundle"], arguments["--candidate-generation"], known)
    champion = None
    if "--champion-bundle" in arguments:
        champion = _generation(arguments["--champion-bundle"], arguments["--champion-generation"], known)
    gates = [
        {name: gate[name] for name in ("metric", "k", "pool", "segment")}
        | {"n": 10**6, "discordant": 10**5, "value": 1.0, "valueLower": 1.0, "valueUpper": 1.0, "method": "bootstrap"}
        | ({"championValue": 1.0, "delta": 0.0, "lower": 0.0, "upper": 0.0} if champion else {})
        for gate in json.loads(arguments["--gates"])
    ]
    return {
        "formatVersion": 1,
        "kind": "evaluation",
        "candidate": _ids(candidate),
        "champion": _ids(champion) if champion else None,
        "asOf": candidate.as_of,
        "leakage": {"candidate": None, "champion": None},
        "gates": gates,
        "collapsed": False,
    }


def _verification_report(arguments: Mapping[str, str], known: Known) -> dict[str, Any]:
    ids = _ids(_generation(arguments["--bundle"], arguments["--generation"], known))
    latency = {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    kind = {"formatVersion": 1, "kind": "verification", "mismatches": []}
    return kind | ids | {"asked": 50, "matched": 50, "maxScoreError": 0.0, "latencyMs": latency}


def _ids(generation: Generation) -> dict[str, str]:
    return {"bundleId": generation.bundle_id, "generationId": generation.id}


def _generation(bundle_uri: str, generation_uri: str, known: Known) -> Generation:
    """As its report says; else as `_index_report` and the training's report make it up.

    Revision and generation key are parts of the URIs.
    """
    key = generation_uri.rsplit("/", maxsplit=1)[-1]
    if key in known.generations:
        return known.generations[key]
    revision = bundle_uri.rstrip("/").split("/")[-2] if bundle_uri.endswith("/bundle") else bundle_uri
    return Generation(bundle_id=f"b-{_hex16(revision)}", id=f"g-{_hex16(key)}", as_of=known.evaluated_as_of)


def _hex16(key: str) -> str:
    return digest("simulated", {"key": key}) + digest("simulated", {"key": key, "half": 2})
