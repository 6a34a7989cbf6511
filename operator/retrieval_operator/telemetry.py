"""The one place that measures and logs a pass: what it was about, what it did, how long it took."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO, cast

import structlog
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.settings import LogFormat, LogLevel

PASSES = Counter("retrieval_operator_reconcile_total", "Reconcile passes by how they ended.", ["outcome"])
ERRORS = Counter("retrieval_operator_reconcile_errors_total", "Errors met in reconcile passes by kind.", ["kind"])
ACTIONS = Counter("retrieval_operator_actions_total", "Actions performed by type.", ["action"])
SECONDS = Histogram(
    "retrieval_operator_reconcile_duration_seconds",
    "Duration of a reconcile pass.",
    # From a settled local pass (some ms) to a pass that waits for an unreachable registry (tens of seconds).
    buckets=(0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0),
)

LEADER = Gauge("retrieval_operator_leader", "1 while this process holds the Lease and acts, else 0.")

# Some weeks of a busy home. A gut feeling.
LOG_MAX_BYTES = 10 * 2**20

_log = structlog.get_logger("retrieval_operator.reconcile")


@dataclass
class PassRecord:
    """What one pass was about, filled while it runs."""

    key: str
    outcome: str = ""
    revision: str = ""
    stack: str = ""
    step: str = ""
    actions: list[str] = field(default_factory=list)
    wrote_status: bool = False
    error: BaseException | None = None

    def about(self, status: RetrievalModelStatus) -> None:
        """Take revision, stack and step from a status: the candidate's while there is one, else the champion's."""
        subject = status.candidate or status.champion
        self.revision = subject.revision if subject else ""
        self.stack = subject.stack if subject else ""
        self.step = status.candidate.step if status.candidate else status.phase


@contextmanager
def measured(record: PassRecord) -> Iterator[PassRecord]:
    """Count, time and log the pass that runs inside; it sets `record.outcome` before it ends."""
    started = time.perf_counter()
    try:
        yield record
    finally:
        seconds = time.perf_counter() - started
        SECONDS.observe(seconds)
        PASSES.labels(record.outcome or "cancelled").inc()
        for action in record.actions:
            ACTIONS.labels(action).inc()
        _write(record, seconds)


def _write(record: PassRecord, seconds: float) -> None:
    log = _log.bind(
        object=record.key,
        revision=record.revision,
        stack_id=record.stack,  # structlog prints a key "stack" as a stack trace
        step=record.step,
        outcome=record.outcome,
    )
    details = {"actions": record.actions, "seconds": round(seconds, 3)}
    if record.error is not None:
        ERRORS.labels(type(record.error).__name__).inc()
        # Ours carry a sentence for people; anything else is a defect and needs its traceback.
        known = record.outcome != "crashed"
        log.warning("pass ended early", error=str(record.error), exc_info=None if known else record.error, **details)
    elif record.actions or record.wrote_status:
        log.info("reconciled", **details)
    else:
        log.debug("nothing to do", **details)


# (namespace, name, status as of RetrievalModelStatus) of every object.
Statuses = Callable[[], Iterable[tuple[str, str, RetrievalModelStatus]]]


class ObjectStates(Collector):
    """Conditions of every object, how old what it serves is, and how long its candidate has been where it is.

    Computed when asked for: what is gone has no series.

    Data: since the newest interaction its index knows. Index: since it was first promoted with this index; a rollback
    does not make it young again. An object that has no champion, or is being deleted, has no ages. One collector, for
    to read a status costs more than all it gives.
    """

    def __init__(self, statuses: Statuses, clock: Callable[[], int]) -> None:
        """`clock` gives seconds since the epoch."""
        self._statuses = statuses
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        labels = ("namespace", "name")
        data = GaugeMetricFamily(
            "retrieval_operator_champion_data_age_seconds", "Since the newest interaction in the index.", labels=labels
        )
        index = GaugeMetricFamily(
            "retrieval_operator_champion_index_age_seconds", "Since the index was first promoted.", labels=labels
        )
        step = GaugeMetricFamily(
            "retrieval_operator_candidate_step_age_seconds",
            "Since the candidate came to its step.",
            labels=(*labels, "kind", "step"),
        )
        conditions = GaugeMetricFamily(
            "retrieval_operator_condition", "1 for the status that a condition has.", labels=(*labels, "type", "status")
        )
        now = self._clock()
        for namespace, name, status in self._statuses():
            for condition in status.conditions:
                conditions.add_metric((namespace, name, condition.type, condition.status), 1)
            candidate = status.candidate
            if candidate is not None:
                step.add_metric((namespace, name, candidate.kind, candidate.step), now - candidate.step_started_at)
            champion = status.champion
            if champion is None or status.phase == "Deleting":
                continue
            if champion.as_of is not None:
                data.add_metric((namespace, name), now - champion.as_of)
            promotions = [
                entry.at
                for entry in status.history
                if entry.outcome == "Promoted" and entry.record and entry.record.generation_id == champion.generation_id
            ]
            index.add_metric((namespace, name), now - min([champion.promoted_at, *promotions]))
        return (data, index, step, conditions)


class RotatingLog(io.TextIOBase):
    """A log file of bounded size: full, it becomes `<path>.1` (one older is kept). A disk that is full loses lines."""

    def __init__(self, path: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
        """Begins an empty file; what was there is the older one."""
        self._handler = _QuietHandler(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8")
        if path.stat().st_size:
            self._handler.doRollover()

    def write(self, text: str) -> int:
        line = text.removesuffix("\n")  # the handler ends lines itself
        self._handler.handle(logging.makeLogRecord({"msg": line}))
        return len(text)

    def close(self) -> None:
        self._handler.close()
        super().close()


class _QuietHandler(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        """A log that cannot be written must not end what it tells about."""


def configure_logging(log_format: LogFormat, level: LogLevel, stream: TextIO | RotatingLog | None = None) -> None:
    """Send the control plane's log to a stream, standard error by default. Colours only where people look."""
    stream = stream or sys.stderr
    renderer: structlog.types.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(sort_keys=True)
    else:
        # The default traceback prints local variables: slow, long, and a leak when one holds a secret.
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", stream)),  # it only writes and flushes
        cache_logger_on_first_use=False,
    )


def configure_foreign_logging(stream: TextIO | None = None) -> None:
    """Send warnings of libraries (kopf, aiohttp) through logging as JSON lines like ours."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
