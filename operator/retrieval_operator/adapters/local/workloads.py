"""Workloads on this machine: each attempt is one supervised process (or torchrun with its workers)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.processes import Command, Exit, ProcessObserved, Supervisor
from retrieval_operator.adapters.local.programs import (
    PROGRAMS,
    ProgramTable,
    clean_environment,
    command_line,
    threads_per_process,
)
from retrieval_operator.api.constants import MESSAGE_MAX_CHARS, ExitCode
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.commands import section
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec, WorkloadStep

# Below the servers, which stay responsive while a training takes every processor. A gut feeling.
_NICE = 10
# Long enough for a trainer to finish its step and leave a checkpoint. A gut feeling.
_GRACE_S = 15.0
_SIGNAL_BASE = 128  # a shell and a container report a death by signal n as 128 + n

_REASONS = {code.value: code.reason for code in ExitCode}


class LocalWorkloads:
    """Fills the port Workloads. `tracking_uri` is the MLflow that workloads with a run report to."""

    def __init__(
        self,
        home: LocalHome,
        supervisor: Supervisor,
        *,
        tracking_uri: str = "",
        programs: ProgramTable = PROGRAMS,
        grace_s: float = _GRACE_S,
    ) -> None:
        self._home = home
        self._supervisor = supervisor
        self._tracking_uri = tracking_uri
        self._programs = programs
        self._grace_s = grace_s

    async def observe(self, model: RetrievalModel) -> Sequence[WorkloadObserved]:
        found = {path: self._supervisor.observe(path) for path in _directories(self._home.workloads(model.key))}
        return [
            _observed(path, process)
            for path, process in found.items()
            if process and process.record.get("owner") == model.metadata.uid
        ]

    async def start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        await asyncio.to_thread(self._start, model, workload)

    async def stop(self, model: RetrievalModel, name: str) -> None:
        if self._is_ours(model, name):
            await asyncio.to_thread(self._supervisor.stop, self._home.workload(model.key, name))

    async def delete(self, model: RetrievalModel, name: str) -> None:
        if self._is_ours(model, name):
            await asyncio.to_thread(self._supervisor.remove, self._home.workload(model.key, name))

    def log(self, key: str, name: str) -> Path:
        """Where the attempt's output is, for people."""
        return self._home.workload(key, name) / "log"

    def _start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        directory = self._home.workload(model.key, workload.name)
        before = self._supervisor.observe(directory)
        if before and before.record.get("owner") != model.metadata.uid:
            # Left by a deleted object of the same name. The same names come back when it is applied again.
            self._supervisor.remove(directory)
        elif before is None:
            # A lost attempt's children may still write to the directory that this attempt is about to write to.
            for sibling in _directories(directory.parent):
                self._supervisor.settle_lost(sibling)
        self._supervisor.start(directory, self._command(model, workload))

    def _command(self, model: RetrievalModel, workload: WorkloadSpec) -> Command:
        # Several nodes are more processes here: the same ranks, on one machine.
        processes = workload.nodes * workload.processes
        reporting = (
            {"MLFLOW_TRACKING_URI": self._tracking_uri, "RETRIEVAL_RUN_ID": workload.run_id} if workload.run_id else {}
        )
        return Command(
            argv=command_line(self._programs, workload.program, workload.arguments, processes),
            environment={
                **clean_environment(section(model, workload.step).pod, threads=threads_per_process(processes)),
                **workload.environment,
                **reporting,
            },
            record={
                "owner": model.metadata.uid,
                "step": workload.step.value,
                "key": workload.key,
                "attempt": workload.attempt,
            },
            deadline_s=workload.deadline_s,
            grace_s=self._grace_s,
            nice=_NICE,
        )

    def _is_ours(self, model: RetrievalModel, name: str) -> bool:
        process = self._supervisor.observe(self._home.workload(model.key, name))
        return process is not None and process.record.get("owner") == model.metadata.uid


def _observed(directory: Path, process: ProcessObserved) -> WorkloadObserved:
    record: Mapping[str, object] = process.record
    end = process.exit
    if process.state == "Lost":
        end = Exit(
            code=None,
            signal=None,
            reason="Lost",
            message="its supervising process was killed, or the machine was restarted",
            last_lines="",
            finished_at=_last_sign_of_life(directory, process.started_at),
        )
    return WorkloadObserved(
        name=directory.name,
        step=WorkloadStep(str(record["step"])),
        key=str(record["key"]),
        attempt=int(str(record["attempt"])),
        state="Running" if end is None else "Succeeded" if end.code == 0 and not end.reason else "Failed",
        exit_code=_exit_code(end) if end else None,
        reason=_reason(end) if end else "",
        message=_message(end) if end else "",
        started_at=process.started_at,
        finished_at=end.finished_at if end else 0,
    )


def _exit_code(end: Exit) -> int | None:
    return end.code if end.signal is None else _SIGNAL_BASE + end.signal


def _reason(end: Exit) -> str:
    """What we did to it, else what it said itself, else what its exit code means (docs/contracts.md section 2)."""
    if end.reason or end.code == ExitCode.OK:
        return end.reason
    return _REASONS.get(end.code, "Crashed") if end.code is not None else "Crashed"


def _message(end: Exit) -> str:
    """The program's own sentence, else the end of its log; nothing for a success."""
    if end.code == ExitCode.OK and not end.reason:
        return ""
    return (end.message or end.last_lines[-MESSAGE_MAX_CHARS:])[:MESSAGE_MAX_CHARS]


def _last_sign_of_life(directory: Path, started_at: int) -> int:
    try:
        return max(started_at, int((directory / "log").stat().st_mtime))
    except OSError:
        return started_at


def _directories(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir())
