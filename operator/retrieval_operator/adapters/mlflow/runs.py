"""Runs: one per (owner, step, key), found by tags, and the reports that prove their completion.

MLflow has no compare-and-set and no unique tags, so two writers may both create. Whoever creates looks again
afterwards; all writers rank twins alike, keep the first and mark the others deleted. Twins exist for milliseconds, and
only while two control planes overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from retrieval_operator.adapters.mlflow.limits import cut_tag
from retrieval_operator.adapters.mlflow.rest import AlreadyExists, RestClient
from retrieval_operator.api.constants import TAG_KEY, TAG_OWNER, TAG_REPORT, TAG_STEP
from retrieval_operator.domain import evidence
from retrieval_operator.domain.observed import RunObserved, RunStatus
from retrieval_operator.domain.plan import EnsureRun
from retrieval_operator.ports import PortError, Rejected, Stale

REPORT_ARTIFACT = "report.json"
PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"  # the page's column "Created by"
_TAGS_PER_BATCH = 100  # MLflow's limit of runs/log-batch
# Of one object. A gut feeling: `mlflow server` starts four processes that answer.
_REPORTS_AT_ONCE = 4
# Whatever else MLflow says of a run (SCHEDULED) has not ended.
_STATUSES: Mapping[str, RunStatus] = {"FINISHED": "Finished", "FAILED": "Failed", "KILLED": "Killed"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as MLflow stores it. `start_time` in milliseconds, as there."""

    run_id: str
    status: str
    is_deleted: bool
    start_time: int
    artifact_uri: str
    tags: Mapping[str, str]

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Order among twins: one that has a report first, then the oldest."""
        return TAG_REPORT not in self.tags, self.start_time, self.run_id

    @property
    def proof(self) -> tuple[str, str]:
        """Under which its report is kept: another hash promises another report."""
        return self.run_id, self.tags.get(TAG_REPORT, "")


class Runs:
    """The runs of one MLflow. `now` gives seconds since the epoch."""

    def __init__(self, rest: RestClient, now: Callable[[], float]) -> None:
        self._rest = rest
        self._now = now
        # Name -> id of experiments seen to exist. A stale id is harmless: runs are searched by owner as well, and
        # `ensure` asks anew.
        self._experiments: dict[str, str] = {}
        # Per owner, so that what an owner no longer has is forgotten: (run id, sha256) -> report.
        self._reports: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}

    def known_experiment_id(self, name: str) -> str | None:
        """The id as `observe` or `ensure` last saw it, None when there was no such experiment."""
        return self._experiments.get(name)

    async def observe(self, owner: str, experiment: str) -> dict[str, RunObserved]:
        """Every run of the owner by "step:key", of twins the first. One request when no report is new.

        Two writes are made here, each at most once per report, because no other moment knows; a failure is left to the
        next pass. A run whose report was verified is set FINISHED (the programs do not end their runs: a later attempt
        may have to report again). A report tag whose artifact is not what it promises is removed: a
        program that finds the tag in place takes its report for made, and would never mend it.
        """
        if experiment not in self._experiments:
            found = await self._rest.find("experiments/get-by-name", {"experiment_name": experiment})
            if found is None:
                return {}
            self._experiments[experiment] = found["experiment"]["experiment_id"]
        first: dict[str, Run] = {}
        for run in await self._search(self._experiments[experiment], {TAG_OWNER: owner}):
            first.setdefault(f"{run.tags.get(TAG_STEP, '')}:{run.tags.get(TAG_KEY, '')}", run)
        reports = await self._read_reports(owner, list(first.values()))
        observed = {}
        for name, run in first.items():
            report = reports.get(run.proof)
            if report is not None:
                await self._finish(run)
            observed[name] = RunObserved(
                run_id=run.run_id,
                step=run.tags.get(TAG_STEP, ""),
                key=run.tags.get(TAG_KEY, ""),
                report=report,
                tags=run.tags,
                status="Finished" if report is not None else _STATUSES.get(run.status, "Running"),
            )
        return observed

    async def ensure(self, owner: str, experiment: str, wanted: EnsureRun) -> None:
        """Find or create; nested under the parent's run when there is one. Twins are reduced to the first."""
        experiment_id = await self._ensure_experiment(experiment)
        identity = {TAG_OWNER: owner, TAG_STEP: wanted.step, TAG_KEY: wanted.key}
        twins = await self._search(experiment_id, identity)
        if not twins:
            tags = {USER_TAG: "retrieval-operator", **wanted.tags, **identity}
            if wanted.parent_key:
                parents = await self._search(
                    experiment_id, {TAG_OWNER: owner, TAG_STEP: "train", TAG_KEY: wanted.parent_key}
                )
                # Somebody deleted the parent: the run is as good without it.
                tags |= {PARENT_TAG: parents[0].run_id} if parents else {}
            await self._rest.post(
                "runs/create",
                {
                    "experiment_id": experiment_id,
                    "run_name": wanted.name,
                    "start_time": int(self._now() * 1000),
                    "tags": _listed(tags),
                },
            )
            twins = await self._search(experiment_id, identity)
        for twin in twins[1:]:
            log.warning("registry.twin_run_deleted", owner=owner, run_id=twin.run_id, kept=twins[0].run_id)
            await self._rest.post("runs/delete", {"run_id": twin.run_id})

    async def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set those tags that differ. Raises Stale when the run is gone or marked deleted."""
        run = await self.get(run_id)
        differing = {key: cut_tag(value) for key, value in tags.items() if run.tags.get(key) != cut_tag(value)}
        listed = _listed(differing)
        for start in range(0, len(listed), _TAGS_PER_BATCH):
            await self._rest.post("runs/log-batch", {"run_id": run_id, "tags": listed[start : start + _TAGS_PER_BATCH]})

    async def set_status(self, run_id: str, status: RunStatus) -> None:
        """Raises Stale when the run is gone or marked deleted."""
        run = await self.get(run_id)
        if run.status != status.upper():
            await self._rest.post("runs/update", self._ending(run_id, status.upper()))

    async def get(self, run_id: str) -> Run:
        """Raises Stale when the run is gone or marked deleted."""
        found = await self._rest.find("runs/get", {"run_id": run_id})
        run = _run(found["run"]) if found else None
        if run is None or run.is_deleted:
            raise Stale(f"the MLflow run {run_id} was deleted")
        return run

    def forget(self, owner: str) -> None:
        """Drop the reports of an owner who is gone."""
        self._reports.pop(owner, None)

    async def _ensure_experiment(self, name: str) -> str:
        by_name = {"experiment_name": name}
        found = await self._rest.find("experiments/get-by-name", by_name)
        if found is None:
            # AlreadyExists: another writer created it a moment ago.
            with contextlib.suppress(AlreadyExists):
                await self._rest.post("experiments/create", {"name": name})
            found = await self._rest.get("experiments/get-by-name", by_name)
        experiment_id: str = found["experiment"]["experiment_id"]
        if found["experiment"].get("lifecycle_stage") == "deleted":
            # Creating it anew is impossible (the name stays taken), and who deleted it had a reason.
            raise Rejected(
                f"the MLflow experiment {name!r} was deleted; restore it (mlflow experiments restore "
                f"--experiment-id {experiment_id}) or purge it (mlflow gc)"
            )
        self._experiments[name] = experiment_id
        return experiment_id

    async def _search(self, experiment_id: str, tags: Mapping[str, str]) -> Sequence[Run]:
        """Active runs with these tags, twins in their order."""
        query = {
            "experiment_ids": [experiment_id],
            "filter": " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items()),
            "order_by": ["attributes.start_time ASC"],
        }
        return sorted(
            [_run(entry) async for entry in self._rest.pages("POST", "runs/search", "runs", query)],
            key=lambda run: run.rank,
        )

    async def _read_reports(self, owner: str, runs: Sequence[Run]) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """The reports of these runs by their proof; of others none is remembered any more.

        Each is kept as soon as it is read: after a restart an object may have more than one look has time for, and
        the next look goes on where this one was cut.
        """
        known = self._reports.get(owner, {})
        reports = {run.proof: known[run.proof] for run in runs if run.proof in known}
        self._reports[owner] = reports
        unread = [run for run in runs if TAG_REPORT in run.tags and run.proof not in reports]
        waiting = iter(unread)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_REPORTS_AT_ONCE, len(unread))):
                    group.create_task(self._read_into(reports, waiting))
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            raise first from first.__cause__  # one sentence for a person is enough
        return reports

    async def _read_into(self, reports: dict[tuple[str, str], Mapping[str, Any]], waiting: Iterator[Run]) -> None:
        for run in waiting:
            report = await self._report(run)
            if report is not None:
                reports[run.proof] = report

    async def _report(self, run: Run) -> Mapping[str, Any] | None:
        """The report, None unless the artifact's bytes are those that the tag promises (docs/contracts.md section 2).

        Not an error: the workload is started again, finds its work complete, and reports anew.
        """
        promised = run.tags.get(TAG_REPORT)
        if not promised:
            return None
        content = await self._rest.artifact(run.run_id, REPORT_ARTIFACT)
        problem = ""
        if content is None:
            problem = "missing"
        elif hashlib.sha256(content).hexdigest() != promised:
            problem = "other sha256 than the tag"
        else:
            try:
                report = json.loads(content, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):  # the latter of one that is nested too deep
                report = None
            if isinstance(report, dict) and report:
                return evidence.essence(report)
            problem = "not a JSON object"
        log.warning("registry.report_refused", run_id=run.run_id, problem=problem)
        await self._try_post("runs/delete-tag", {"run_id": run.run_id, "key": TAG_REPORT})
        return None

    async def _finish(self, run: Run) -> None:
        if run.status != "FINISHED":
            await self._try_post("runs/update", self._ending(run.run_id, "FINISHED"))

    def _ending(self, run_id: str, status: str) -> dict[str, Any]:
        """MLflow's page shows the duration up to `end_time`, in milliseconds; 0 of a run that goes on: none."""
        return {"run_id": run_id, "status": status, "end_time": 0 if status == "RUNNING" else int(self._now() * 1000)}

    async def _try_post(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            await self._rest.post(path, body)
        except PortError as error:
            log.warning("registry.write_left_to_next_pass", path=path, error=str(error))


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity as numbers; a report never holds them (docs/contracts.md, first paragraph)."""
    raise ValueError(name)


def quoted(value: str) -> str:
    """A string literal of MLflow's filter language, which has no escapes. Raises Rejected when that is impossible."""
    for mark in ("'", '"'):
        if mark not in value:
            return f"{mark}{value}{mark}"
    raise Rejected(f"MLflow cannot search for {value!r}: it holds both kinds of quotes; use at most one kind")


def tags_of(entry: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in entry.get("tags", [])}


def _listed(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": cut_tag(value)} for key, value in tags.items()]


def _run(entry: Mapping[str, Any]) -> Run:
    facts = entry["info"]
    return Run(
        run_id=facts["run_id"],
        status=facts.get("status", ""),
        is_deleted=facts.get("lifecycle_stage") == "deleted",
        start_time=int(facts.get("start_time", 0)),
        artifact_uri=facts.get("artifact_uri", ""),
        tags=tags_of(entry.get("data", {})),
    )
