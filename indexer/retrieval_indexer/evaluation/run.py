"""`retrieval-evaluate run`: candidate, champion and baselines on the same held-out members, into one directory.

evaluation.json   last: what a gate is decided by      members.parquet   every metric of every member and subject
evaluation.png    the same for people                  pools.parquet     the negatives, by id
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrieval_core.dataset import Dataset, open_dataset
from retrieval_core.differences import differences
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.files import is_published, local_path, read_json, sha256_file, write_json
from retrieval_core.generation.writer import write_table
from retrieval_indexer.evaluation.answers import (
    Answers,
    Metric,
    StackAnswers,
    cached_answers,
    collect_answers,
    metrics_for,
)
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet, build_evaluation_set
from retrieval_indexer.evaluation.gates import GateMeasurement, GateRequest, gate_metrics
from retrieval_indexer.evaluation.leakage import describe_leakage
from retrieval_indexer.evaluation.plot import plot_evaluation
from retrieval_indexer.evaluation.pools import Pools, draw_pools, read_pools, write_pools
from retrieval_indexer.evaluation.results import FORMAT_VERSION, comparison_rows, metric_rows
from retrieval_indexer.evaluation.scorers import BASELINES, Progress, Stack, StackScorer
from retrieval_indexer.workspace import Workspace

LAST_FILE = "evaluation.json"
PLOT_FILE = "evaluation.png"
MEMBERS_FILE = "members.parquet"
POOLS_FILE = "pools.parquet"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate. A stack is (bundle URI, evaluation generation URI)."""

    dataset: str
    candidate: tuple[str, str]
    champion: tuple[str, str] | None
    untrained: tuple[str, str] | None
    gates: Sequence[GateRequest]
    ks: Sequence[int]
    segments: Sequence[str]
    confidence: float
    min_samples: int
    pools: str | None
    out: str
    cache: str | None
    device: str = "cpu"


class Evaluation:
    """One evaluation. Opening it validates all inputs; nothing is written before `run`."""

    def __init__(self, request: EvaluationRequest) -> None:
        if not 0.5 <= request.confidence < 1:
            raise BadArguments(f"--confidence is {request.confidence}, expected at least 0.5 and below 1")
        self.request = request
        self.dataset: Dataset = open_dataset(request.dataset)
        stacks = {"candidate": request.candidate, "champion": request.champion, "untrained": request.untrained}
        self.stacks = {name: Stack.open(*uris) for name, uris in stacks.items() if uris is not None}

    def found_complete(self) -> dict[str, Any] | None:
        """evaluation.json of an earlier run of the same command; BadInput when --out holds another evaluation.

        What counts is what decides the numbers: neither the cache nor the device.
        """
        if not is_published(self.request.out, LAST_FILE):
            return None
        document = read_json(local_path(self.request.out) / LAST_FILE)
        wanted = {"candidate": self._ids("candidate"), "champion": self._ids("champion"), **self._settings()}
        wanted |= {"snapshot": self.dataset.snapshot, "minSamples": self.request.min_samples}
        found = {name: document[name] for name in ("candidate", "champion", "minSamples")}
        found |= {"snapshot": document["dataset"]["snapshot"], **document.get("settings", {})}
        others = differences(wanted, found)
        if others:
            raise BadInput(
                f"{self.request.out} holds another evaluation, with {', '.join(others)}; choose another --out"
            )
        return document

    @cached_property
    def evaluation_set(self) -> EvaluationSet:
        evaluation = build_evaluation_set(self.dataset, self.stacks["candidate"].generation)
        for name, stack in self.stacks.items():
            if (
                name != "candidate"
                and build_evaluation_set(self.dataset, stack.generation).digest() != evaluation.digest()
            ):
                raise BadInput(
                    f"the {name}'s generation {stack.generation.id} is as of {stack.generation.manifest.as_of}, the "
                    f"candidate's as of {evaluation.as_of}: build both with the same --as-of"
                )
        return evaluation

    def run(self, progress: Callable[[str], Progress] = lambda _: lambda __: None) -> dict[str, Any]:
        """Evaluate and write everything, evaluation.json last; returns its document."""
        workspace = Workspace(self.request.out)
        evaluation, directory = self.evaluation_set, workspace.directory
        pools = (
            draw_pools(evaluation)
            if self.request.pools is None
            else read_pools(local_path(self.request.pools), evaluation)
        )
        metrics = metrics_for(self.request.ks, gate_metrics(self.request.gates))
        subjects = self._answers(evaluation, pools, metrics, progress)
        document = self._document(evaluation, subjects)
        write_pools(directory / POOLS_FILE, pools, evaluation)
        _write_members(directory / MEMBERS_FILE, evaluation, subjects)
        margins = [None if g.max_regression is None else float(g.max_regression) for g in self.request.gates]
        plot_evaluation(document, margins, directory / PLOT_FILE)
        write_json(directory / LAST_FILE, document)
        workspace.publish(LAST_FILE)
        return document

    def _answers(
        self,
        evaluation: EvaluationSet,
        pools: Pools,
        metrics: Sequence[Metric],
        progress: Callable[[str], Progress],
    ) -> dict[str, Answers]:
        """Every subject's answers. Stacks come one after another, so that one model is in memory at a time."""
        stacks: dict[str, StackAnswers] = {}
        for name, stack in self.stacks.items():
            scorer = StackScorer(stack, progress(name), self.request.device)
            stacks[name] = cached_answers(scorer, evaluation, pools, metrics, self.request.cache)
        answers = {name: found.own for name, found in stacks.items()}
        answers["notPersonal"] = stacks["candidate"].not_personal
        return answers | {
            name: collect_answers(scorer, evaluation, pools, metrics) for name, scorer in BASELINES.items()
        }

    def _document(self, evaluation: EvaluationSet, subjects: dict[str, Answers]) -> dict[str, Any]:
        confidence, seed = self.request.confidence, int(evaluation.digest()[:8], 16)
        leakage = {name: self._leakage(evaluation, name) for name in ("candidate", "champion")}
        measurement = GateMeasurement(
            evaluation,
            subjects["candidate"],
            subjects.get("champion"),
            confidence=confidence,
            seed=seed,
            leaks=any(leakage.values()),
        )
        gates = [measurement.measure(gate) for gate in self.request.gates]
        dataset = self.dataset
        return {
            "formatVersion": FORMAT_VERSION,
            "kind": "evaluation",
            "candidate": self._ids("candidate"),
            "champion": self._ids("champion"),
            "dataset": {
                "name": dataset.spec.name,
                "snapshot": dataset.snapshot,
                "provenance": dataset.spec.provenance,
                "split": dataset.split.document(),
            },
            "asOf": evaluation.as_of,
            "leakage": leakage,
            "members": {
                "evaluated": len(evaluation),
                "noPositiveInIndex": evaluation.no_positive_in_index,
                "notJoined": evaluation.not_joined,
            },
            "minSamples": self.request.min_samples,
            "settings": self._settings(),
            "gates": [gate.model_dump(mode="json", by_alias=True) for gate in gates],
            "metrics": metric_rows(evaluation, subjects, self.request.segments, confidence=confidence, seed=seed),
            "comparisons": comparison_rows(
                evaluation, subjects, self.request.segments, confidence=confidence, seed=seed
            ),
            "coverage": {"testPositives": evaluation.test_positives, "absent": evaluation.absent},
            "popularityCorrelation": {
                name: subjects[name].popularity_correlation for name in self.stacks if name in subjects
            },
            "collapsed": subjects["candidate"].collapsed,
            "plot": PLOT_FILE,
        }

    def _leakage(self, evaluation: EvaluationSet, name: str) -> str | None:
        if name not in self.stacks:
            return None
        return describe_leakage(
            name,
            self.stacks[name].bundle.training,
            snapshot=self.dataset.snapshot,
            split=self.dataset.split.document(),
            test_start=int(evaluation.times.min()),
        )

    def _ids(self, name: str) -> dict[str, str] | None:
        stack = self.stacks.get(name)
        return None if stack is None else {"bundleId": stack.bundle.id, "generationId": stack.generation.id}

    def _settings(self) -> dict[str, Any]:
        """What was asked for, besides the stacks and the data that the document names elsewhere."""
        pools = self.request.pools
        return {
            "k": list(self.request.ks),
            "segments": list(self.request.segments),
            "confidence": self.request.confidence,
            "gates": [gate.model_dump(mode="json", by_alias=True) for gate in self.request.gates],
            "pools": None if pools is None else sha256_file(local_path(pools)),
            "untrained": self._ids("untrained"),
        }


def _write_members(path: Path, evaluation: EvaluationSet, subjects: dict[str, Answers]) -> None:
    """One row per subject and member: id, evaluation time, number of positives, and every metric."""
    tables = []
    for name, answers in subjects.items():
        columns: dict[str, Any] = {
            "subject": pa.array([name] * len(evaluation)),
            "member_id": pa.array(evaluation.member_ids),
            "as_of": pa.array(evaluation.times),
            "positives": pa.array([len(rows) for rows in evaluation.positives]),
        }
        tables.append(pa.table(columns | {str(metric): pa.array(v) for metric, v in answers.values.items()}))
    merged = pa.concat_tables(tables)
    write_table(path, dict(zip(merged.column_names, merged.columns, strict=True)))
